// How a block computes again in backward what it did not save (recompute_kind.h).
#pragma once

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

/// After the layer's forward.
template <class Layer>
void forget(Recompute recompute, const Layer& layer, typename Layer::Saved& saved) {
  if (recompute == Layer::recomputed_by) layer.forget(saved);
  if (recompute == Recompute::norms) saved.set_input({});
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
