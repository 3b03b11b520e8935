// Writes and replays the choices of a layer of experts, for comparisons of layouts: between two of them a choice may
// differ if the scores are equal up to rounding, and then the gradients differ too.
#pragma once

#include <string>

#include "framework/comm/context.h"
#include "framework/ops/experts.h"

namespace choir {

/// What a layer of experts chooses, and by what: see kernels::Route.
struct OwnChoices {
  Tensor choices;  ///< [N, k] i32
  Tensor logits;   ///< [N, experts]
  Tensor bias;     ///< [experts], or empty
  ops::ExpertScore score;
};

/// The choices [N, k] i32 that the rows are to make in `layer`, if `context.choices` replays. If it does not: writes
/// those of the layer to it, and returns an empty tensor. Waits for the device.
Tensor replay_choices(const std::string& layer, const OwnChoices& own, Context& context);

}  // namespace choir
