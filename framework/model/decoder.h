// A decoder-only transformer (GPT, Llama): embedding, blocks, final norm, output head.
#pragma once

#include <functional>
#include <vector>

#include "framework/model/model_config.h"
#include "framework/nn/block.h"
#include "framework/nn/embedding.h"
#include "framework/nn/norm.h"
#include "framework/nn/output_head.h"

namespace choir {

class Decoder {
 public:
  /// Everything backward needs for one micro-batch; a Saved is used by one forward and one backward, which empties it.
  struct Saved {
    Embedding::Saved embedding;
    std::vector<Block::Saved> blocks;  // one a block
    std::vector<Tensor> inputs;        // with recompute, instead: [rows held, D], the input of each block
    Norm::Saved final_norm;
    Tensor dx;  // [rows held, D]: the gradient of what the head read
  };

  /// Declares the parameters in groups: 0 the embedding, 1 ... L the blocks, L + 1 final norm and head.
  Decoder(const ModelConfig&, const TensorShare&, bool recompute, ParameterStore&);

  /// ids, targets [N] i32. Adds the losses of all target tokens to loss_sum (one f64 on the device). With
  /// `gradient`, also saves what backward needs, for the gradient of scale * loss.
  void forward(const Tensor& ids, const Tensor& targets, const Tensor& loss_sum, double scale, bool gradient, Saved&,
               Context&) const;

  /// Accumulates all gradients. Calls group_final(g) when nothing more will be added to group g and later ones.
  void backward(Saved&, Context&, const std::function<void(int group)>& group_final) const;

  /// Key/value caches for one sequence of at most `positions` tokens.
  std::vector<KeyValueCache> make_caches(std::int64_t positions, Runtime&) const;
  /// Logits [1, V] of the token after ids [n], which stand at `position` onward.
  Tensor generate(const Tensor& ids, std::int64_t position, std::vector<KeyValueCache>& caches, Context&) const;

 private:
  bool recompute_;
  Embedding embedding_;
  std::vector<Block> blocks_;
  std::vector<Norm> final_norm_;  // exactly one: made after the blocks, in the order of the parameters
  std::vector<OutputHead> head_;  // exactly one
};

/// Floating-point operations of one training step on `sequences` sequences: 6 a parameter in a matrix product and
/// token, plus attention, of which the causal half counts. The model's own work: recomputation and padding do not
/// count.
double model_flops(const ModelConfig&, std::int64_t sequences);

}  // namespace choir
