// Writes and replays the choices of a layer of experts, for comparisons of layouts: between two of them a choice may
// differ if the scores are equal up to rounding, and then the gradients differ too.
#pragma once

#include <string>

#include "framework/comm/context.h"

namespace choir {

/// The choices [N, k] i32 that rows with `logits` [N, experts] are to make in `layer`, if `context.choices` replays;
/// `own` are those that they would make. If it does not replay: writes `own` to it, and returns an empty tensor. Waits
/// for the device.
Tensor replay_choices(const std::string& layer, const Tensor& own, const Tensor& logits, Context& context);

}  // namespace choir
