// The heads of one layer and sequence as kernels/attention_map.h reads them, from what a step has recorded.
//
// A rank has those of its query heads. Positions that other ranks of the context axis hold come from there; nothing
// else is exchanged.
#pragma once

#include <vector>

#include "framework/train/attention_stacks.h"
#include "framework/train/trainer.h"
#include "kernels/attention_map.h"

namespace choir {

/// What this rank has recorded of the layer called `layer` and a sample of the batch; null: nothing, and then nor have
/// the other ranks of its context axis.
const AttentionRecord::Entry* recorded(const AttentionRecord&, const std::string& layer, std::int64_t sample);

/// Tokens of the text that an encoder reads as `stream`, which is not the target.
std::int64_t source_tokens(const ModelConfig&, const SampleBuffer&, TokenStream stream);

/// values = their sums over the ranks of `axis`. Each number is of one rank, and the others have zeros. Collective.
template <class T>
void put_together(Runtime&, Communicator& axis, std::vector<T>& values);

/// The elements in f32, in host memory; x has any row stride.
std::vector<float> on_host(Runtime&, const Tensor& x);

/// The rows of sample `sample` in x [N, width], where each run of positions is.
struct RunRows {
  Tensor rows;           ///< [positions of the run, width]
  std::int64_t begin{};  ///< position of the first
};
std::vector<RunRows> rows_of_sample(const Tensor& x, const Rows& rows, std::int64_t sample);

class LayerHeads {
 public:
  /// The entry is of layer `layer` of `stack`, `sample` is one of its sequences (AttentionStack::sequence_of), and
  /// `buffer` is what was read as its sample. Collective over the context axis.
  LayerHeads(Trainer&, const AttentionStack& stack, std::int64_t layer, const AttentionRecord::Entry&,
             std::int64_t sample, const SampleBuffer& buffer);

  const Slice& heads() const { return heads_; }  ///< by their numbers in the layer
  kernels::AttentionHead at(std::int64_t head) const;

 private:
  /// A gate [N, H held] of the sample's tokens: [H held, T]. 0 of what begins a document, which no token sees across.
  std::vector<double> gate_of_heads(Trainer&, const Tensor& gate, const Rows&, std::int64_t sample) const;
  void read_decays(Trainer&, const AttentionRecord::Entry&, std::int64_t sample);
  void read_rates(Trainer&, const AttentionRecord::Entry&, std::int64_t sample);
  void read_lse(Trainer&, const AttentionRecord::Entry&, std::int64_t sample);

  AttentionSpec spec_;
  std::int64_t length_, kv_length_;
  std::vector<kernels::DocumentRange> documents_;  // [T]: the keys that each query sees, of what its band has; or empty
  Slice heads_;
  std::vector<float> q_;             // [T, H held * E]
  std::vector<float> k_transposed_;  // [K held, E, keys]
  std::vector<float> lse_;           // [H held, T], or empty: the layer has linear attention
  std::vector<float> sinks_;         // [H held], or empty
  std::vector<double> decay_sums_;   // [H held, T], or empty: the layer has softmax
  std::vector<float> k_, rates_;     // [H held, T, E] and [H held, T], of the delta rule; or empty
};

}  // namespace choir
