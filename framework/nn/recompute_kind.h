// What the backward of a block computes again instead of having it saved. All of it has the bits of forward.
//
//   norms          the outputs of the norms, which the layers behind them read: from their inputs
//   attention      q, k, v and the result of attention (but not the product behind it): from the layer's input
//   feed_forward   the hidden features before and after the activation: from the layer's input
//   block          all but the block's input (model/parts.cpp)
//
// Korthikanti et al. 2022, arXiv 2205.05198. Their selective kind computes the probabilities of attention again, which
// are never saved here.
#pragma once

#include <array>

#include "framework/core/names.h"

namespace choir {

enum class Recompute { none, norms, attention, feed_forward, block };
template <>
inline constexpr auto names<Recompute> = std::array{"none", "norms", "attention", "feed_forward", "block"};

}  // namespace choir
