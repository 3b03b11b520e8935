// How a block computes again in backward what it did not save (recompute_kind.h).
#pragma once

#include <utility>

#include "framework/nn/norm.h"
#include "framework/nn/recompute_kind.h"

namespace choir {

/// For a forward that is run again: what it counted has been counted.
inline Context repeated(const Context& context) {
  Context again = context;
  again.expert_sums = again.head_sums = {};
  return again;
}

// A layer behind a norm has Layer::recomputed_by, what of `Recompute` it is; Layer::Saved::set_input(); and
//   void forget(Saved&) const                    drops what the other one makes again
//   void compute_again(Saved&, Context&) const

/// Layer::forget() of a layer that makes everything but its input again.
template <class Saved>
void forget_all_but_input(Saved& saved) {
  Saved kept;
  kept.x = saved.x;
  saved = std::move(kept);
}

/// After the layer's forward.
template <class Layer>
void forget(Recompute recompute, const Layer& layer, typename Layer::Saved& saved) {
  if (recompute == Layer::recomputed_by) layer.forget(saved);
  if (recompute == Recompute::norms) saved.set_input({});
}

/// Layer::forward(inputs ..., saved of the layer, context), then forget(). `saved` holds what one of several kinds of
/// layers saves.
template <class Layer, class SavedOfKinds, class... Inputs>
auto forward_and_forget(Recompute recompute, const Layer& layer, SavedOfKinds& saved, Context& context,
                        const Inputs&... inputs) {
  auto& of_layer = saved.template emplace<typename Layer::Saved>();
  auto result = layer.forward(inputs..., of_layer, context);
  forget(recompute, layer, of_layer);
  return result;
}

/// Before its backward: all that this reads. `norm` made the layer's input.
template <class Layer>
typename Layer::Saved remember(Recompute recompute, const Norm& norm, const Norm::Saved& of_norm, const Layer& layer,
                               const typename Layer::Saved& saved, Context& context) {
  typename Layer::Saved all = saved;
  Context again = repeated(context);
  if (recompute == Recompute::norms) {
    Norm::Saved statistics;
    all.set_input(norm.forward(of_norm.x, statistics, again));
  }
  if (recompute == Layer::recomputed_by) layer.compute_again(all, again);
  return all;
}

}  // namespace choir
