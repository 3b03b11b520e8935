// Multi-head attention, its heads split over the tensor axis: a branch of the residual stream.
//
//   q, k, v = x Wq^T + bq, x Wk^T + bk, x Wv^T + bv     one product; each rank its own heads
//   q, k    = norm(q), norm(k)                          if asked for: per head, one weight for all heads
//   a       = dropout(softmax(mask(score(q k^T / sqrt(E))))) v    per head; rotary positions turn q and k before
//   branch  = dropout(a Wo^T + bo)                       summed over the ranks
//
// A token may choose some of the heads (framework/nn/head_router.h): a is then times the gate of the head, and 0 of the
// others, which are not computed for it.
//
// Vaswani et al. 2017, arXiv 1706.03762; grouped key/value heads: Ainslie et al. 2023, arXiv 2305.13245; norms of q and
// k: Dehghani et al. 2023, arXiv 2302.05442.
#pragma once

#include <optional>
#include <string>

#include "framework/nn/head_router.h"
#include "framework/nn/linear.h"
#include "framework/nn/norm.h"
#include "framework/nn/recompute.h"
#include "framework/ops/residual.h"
#include "framework/parallel/context.h"

namespace choir {

struct AttentionShapeConfig {
  std::int64_t width = 0, heads = 1, kv_heads = 1, head_width = 0;
  kernels::Band band{};               ///< between positions: what a token sees
  kernels::Score score{};             ///< of all heads, between positions
  std::int64_t rotary_positions = 0;  ///< the most positions; 0: q and k are not turned
  kernels::Grid rotary_grid{};        ///< of these positions
  double rotary_base = 10000;
  bool norm = false;  ///< RMS norms of q and k
  double norm_epsilon = 1e-5;
  bool sinks = false;  ///< each head has a logit beside its scores
  HeadRouting routing{};
  bool bias = true;
  double dropout = 0;              ///< of the residual branch
  double probability_dropout = 0;  ///< of attention
  float deviation = 0.02f, out_deviation = 0.02f;
};

// ---- The parameters of a layer named `name`, which cross-attention has too.

/// Those of q, k and v, of the heads held here.
std::vector<ColumnPart> qkv_parts(const std::string& name, const AttentionShapeConfig&, const HeadPartition&,
                                  std::int64_t rank);
/// [query heads held, 1]; null: there are none.
Weight* add_sinks(const std::string& name, const AttentionShapeConfig&, const HeadPartition&, const TensorShare&,
                  ParameterStore&);
/// RMS norms of the heads of q and k, in place, one weight for all heads of each; nothing if they are not asked for.
class HeadNorms {
 public:
  struct Saved {
    Norm::Saved q, k;  // of [N * heads held, E]
  };
  HeadNorms(const std::string& name, const AttentionShapeConfig&, const TensorShare&, ParameterStore&);
  /// q and k [N, heads * E] become their norms; one of them may be empty.
  void forward(const Tensor& q, const Tensor& k, Saved&, Context&) const;
  /// Gradients of the norms become those of q and k.
  void backward(const Tensor& dq, const Tensor& dk, const Saved&, Context&) const;

 private:
  std::int64_t head_width_;
  std::optional<Norm> q_, k_;
};
/// A weight [H, 1] as [H]; empty while there is none.
Tensor by_head(const Tensor& weight);
/// Turns the heads of x [N, heads * E], in place, by the positions of their rows, if there are rotary positions.
/// `inverse` is the backward.
void rotate_heads(const Tensor& x, const AttentionShapeConfig&, bool inverse, Context&);
/// What the layer `name` computes with its heads on rank `rank` of the tensor axis, of the rows of the context.
AttentionSpec attention_spec(const std::string& name, const AttentionShapeConfig&, const HeadPartition&,
                             std::int64_t rank, const Weight* sinks, const Context&);

class Attention {
 public:
  struct Saved {
    Tensor x;  // [rows held, D]: the input
    HeadNorms::Saved norms;
    Attended attended;         // of q, k, v side by side, after norms and rotary
    HeadRouter::Saved router;  // of routed heads

    void set_input(const Tensor& input) { x = input; }
  };

  Attention(const std::string& name, const AttentionShapeConfig&, const TensorShare&, ParameterStore&);

  /// x [rows held, D] -> the branch [rows held, D]. With context.cache, one sequence, whose keys and values are
  /// added to the cache: x attends to all that it holds then.
  ops::Branch forward(const Tensor& x, Saved&, Context&) const;
  /// dy [rows held, D], of the stream with the branch -> dx [rows held, D]. If `sum_of_dy` is given and
  /// nothing is dropped, it becomes the gradient of the last bias, to which the caller then adds the sum over rows of
  /// dy.
  Tensor backward(const Tensor& dy, const Saved&, Context&, Tensor* sum_of_dy = nullptr) const;

  /// Of Recompute, and what it asks for (recompute.h).
  static constexpr Recompute recomputed_by = Recompute::attention;
  void forget(Saved&) const;
  void compute_again(Saved&, Context&) const;

  /// Room for `positions` tokens of one sequence.
  KeyValueCache make_cache(std::int64_t positions, Runtime&) const;

 private:
  /// All but the last product, without its sum over the ranks: [N, H E held].
  Tensor attend_heads(const Tensor& x, Saved&, Context&) const;
  /// Of a tensor of q, k and v.
  Tensor q_of(const Tensor& qkv) const;
  Tensor k_of(const Tensor& qkv) const;
  void rotate(const Tensor& qkv, bool inverse, Context&) const;
  AttentionSpec spec(const Context&) const;
  Tensor attend_to_cache(const Tensor& qkv, const KeyValueCache&, const Saved&, Context&) const;
  ops::Dropout dropout(const Context&) const;

  AttentionShapeConfig config_;
  std::string name_;
  HeadPartition partition_;
  std::int64_t rank_;
  ColumnLinear qkv_;
  RowLinear out_;
  Weight* sinks_ = nullptr;  // [H held]
  HeadNorms norms_;
  std::optional<HeadRouter> router_;
};

}  // namespace choir
