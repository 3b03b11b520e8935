// Gated linear attention (Yang et al. 2023, arXiv 2312.06635) in place of softmax attention, its heads split over the
// tensor axis: a branch of the residual stream.
//
//   q, k, v = x Wq^T + bq, x Wk^T + bk, x Wv^T + bv     one product; norms of q and k and rotary positions as there
//   g       = log(sigmoid(x Wg^T + bg)) / 16            a decay of each head and token; bg always is
//   log b   = log(sigmoid(x Wb^T + bb))                 by the delta rule only: a rate of each head and token
//   o       = linear attention of q, k, v, g (and b)    per head: kernels/linear_attention.h, kernels/delta_attention.h;
//                                                       of an encoder's tokens to both sides, with one decay and rate
//   branch  = dropout(norm(o) Wo^T + bo)                 the norm per head: no softmax bounds o
//
// The decays' biases begin at random, at 2 with a deviation of 1.5, so that the heads' memories begin with half-lives
// from tens of tokens to thousands; those of rates begin at 0. The norm is an RMS norm with one weight for all heads.
//
// The delta rule (Yang et al. 2024, arXiv 2412.06464) is used as a kind of state alone: the short convolutions, the
// SiLU of q, k and v and the output gate of that paper are not here.
#pragma once

#include <string>

#include "framework/nn/attention.h"
#include "framework/nn/head_gate.h"
#include "framework/parallel/context_state.h"

namespace choir {

class LinearAttention {
 public:
  struct Saved {
    Tensor x;  // [rows held, D]: the input
    HeadNorms::Saved norms;
    Norm::Saved out_norm;  // of [N * heads held, E]
    StatesAttended attended;
    Tensor out;  // [N, H E held]: after the norm

    void set_input(const Tensor& input) { x = input; }
  };

  /// The shape has as many key/value heads as heads, a full band or a causal one, and scores that are products.
  /// With `delta` states change by the delta rule.
  LinearAttention(const std::string& name, const AttentionShapeConfig&, bool delta, const TensorShare&,
                  ParameterStore&);

  /// x [rows held, D] -> the branch [rows held, D]. With context.cache, one sequence: x goes on from the state of
  /// the cache, and leaves its own there.
  ops::Branch forward(const Tensor& x, Saved&, Context&) const;
  /// dy [rows held, D], of the stream with the branch -> dx [rows held, D]. `sum_of_dy`: as of Attention.
  Tensor backward(const Tensor& dy, const Saved&, Context&, Tensor* sum_of_dy = nullptr) const;

  /// Of Recompute, and what it asks for (recompute.h).
  static constexpr Recompute recomputed_by = Recompute::attention;
  void forget(Saved&) const;
  void compute_again(Saved&, Context&) const;

  /// A state, whatever the number of positions.
  KeyValueCache make_cache(std::int64_t positions, Runtime&) const;

 private:
  /// All but the last product: makes saved.out.
  void attend_heads(const Tensor& x, Saved&, Context&) const;
  std::int64_t heads() const { return partition_.query(rank_).count(); }
  Tensor part_of(const Tensor& qkv, int which) const;  // q, k or v
  AttentionSpec spec(const Context&) const;
  Tensor attend_to_cache(const Tensor& qkv, const Tensor& log_decay, const Tensor& log_rate, const Context&) const;
  ops::Dropout dropout(const Context&) const;

  AttentionShapeConfig config_;
  std::string name_;
  HeadPartition partition_;
  std::int64_t rank_;
  ColumnLinear qkv_;
  RowLinear out_;
  HeadNorms norms_;
  Norm out_norm_;
  HeadGate decay_;
  std::optional<HeadGate> rate_;  // by the delta rule
};

}  // namespace choir
