// The sizes of packed panels (tile_pack.h).
#pragma once

#include <cstdint>

namespace choir::kernels::cpu {

inline constexpr std::int64_t panel = 32;                     ///< rows of a, columns of b, and the depth of a step
inline constexpr std::int64_t step_elements = panel * panel;  ///< elements in a step; f32 in a block of sums

constexpr std::int64_t num_panels(std::int64_t length) { return (length + panel - 1) / panel; }

}  // namespace choir::kernels::cpu
