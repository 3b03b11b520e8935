// Attention of a decoder's tokens to the output of an encoder, the memory; its heads split over the tensor axis, with
// the residual add behind it.
//
//   q    = x Wq^T + bq                                  of the tokens; each rank its own heads
//   k, v = memory Wk^T + bk, memory Wv^T + bv           of the source's positions; one product
//   a    = softmax(mask(score(q k^T / sqrt(E)))) v      per head; the mask leaves out what pads a source
//   y    = residual + dropout(a Wo^T + bo)              summed over the ranks
//
// Vaswani et al. 2017, arXiv 1706.03762. Nothing here knows positions. Over the context axis, keys and values are
// gathered, whatever parallel.context_kind says: context.h.
#pragma once

#include <optional>
#include <string>

#include "framework/nn/attention.h"

namespace choir {

class CrossAttention {
 public:
  struct Saved {
    Tensor x, memory;            // [rows held, D]: the inputs
    Norm::Saved q_norm, k_norm;  // of [N * heads held, E]
    AttendedAcross attended;     // of q, and of k and v side by side, after norms
  };

  /// The band and the positions of the shape are not used.
  CrossAttention(const std::string& name, const AttentionShapeConfig&, const TensorShare&, ParameterStore&);

  /// x and residual [rows held, D], memory [rows of the source held, D] -> y [rows held, D]. With context.cache, one
  /// sequence: keys and values of the memory are added to the cache, or read from it if no row of the source is held.
  Tensor forward(const Tensor& x, const Tensor& memory, const Tensor& residual, Saved&, Context&) const;

  struct Gradients {
    Tensor dx;       // [rows held, D]
    Tensor dmemory;  // [rows of the source held, D]
  };
  /// dy [rows held, D]; the gradient of `residual` is dy itself.
  Gradients backward(const Tensor& dy, const Saved&, Context&) const;

  /// The keys and values of a source of `positions` tokens.
  Tensor make_cache(std::int64_t positions, Runtime&) const;

 private:
  AttentionSpec spec(const Context&) const;
  std::int64_t key_width() const { return partition_.key_value(rank_).count() * config_.head_width; }
  Tensor keys_and_values(const Tensor& memory, Saved&, Context&) const;
  Tensor attend_to_cache(const Tensor& q, const Tensor& memory, Saved&, Context&) const;
  ops::Dropout dropout(const Context&) const;

  AttentionShapeConfig config_;
  std::string name_;
  HeadPartition partition_;
  std::int64_t rank_;
  ColumnLinear q_, kv_;
  RowLinear out_;
  Weight* sinks_;  // [H held]; null: none
  std::optional<Norm> q_norm_, k_norm_;
};

}  // namespace choir
