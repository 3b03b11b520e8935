// The router of a layer of attention: which heads compute a token (kernels/head_routing.h).
//
//   scores = x W^T     of the heads that are routed, in f32
//
// A token chooses the heads with the highest scores. Its gates are the softmax over the scores of those chosen, times
// their number. All tensor ranks choose alike. A head computes the first `capacity` tokens of a sequence that chose it,
// by position: a token never changes what earlier ones get, as with experts (framework/nn/experts.h).
#pragma once

#include <string>

#include "framework/core/parameter.h"
#include "framework/ops/head_routing.h"
#include "framework/parallel/context.h"
#include "framework/parallel/tensor.h"

namespace choir {

class HeadRouter {
 public:
  struct Saved {
    Tensor logits;       // [N, routed heads]
    ops::Routed routed;  // [N, k]
    Tensor counts;       // [context ranks, B, 2, routed heads]
    ops::HeadRows rows;  // of the heads held here
  };

  /// `width` is that of x. The weight is whole on every tensor rank.
  HeadRouter(const std::string& name, std::int64_t width, std::int64_t heads, float deviation, const HeadRouting&,
             const TensorShare&, ParameterStore&);

  /// all [N, D]: what every tensor rank computes from. Writes `saved`.
  void choose(const Tensor& all, const AttentionSpec&, Saved& saved, Context&) const;
  /// dgates [N * H held, 1] -> this rank's part of dx [N, D]. x [rows held, D] is what `all` was made from.
  Tensor backward(const Tensor& dgates, const Tensor& x, const AttentionSpec&, const Saved&, Context&) const;

  /// The part of the cache for generation: see KeyValueCache::head_choices.
  Tensor make_cache(Runtime&) const;

 private:
  ops::Routed route(const Tensor& logits, Context&) const;
  ops::BalanceLoss balance(const Tensor& counts, double scale) const;

  std::string name_;
  std::int64_t heads_;  // that are routed
  HeadRouting routing_;
  Weight* weight_;
};

}  // namespace choir
