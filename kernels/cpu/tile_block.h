// The product of two packed panels, on tiles or in vectors: 32 x 32 sums, which both products and attention consist of.
//
// Sums of 32 x 32 are four tiles, one behind the other: rows 0 to 15 with columns 0 to 15, then columns 16 to 31; rows
// 16 to 31 likewise. Row r is the two vectors at sums_of_row(r) and 256 elements behind it.
#if defined(CHOIR_KERNELS_CPU_TILE_BLOCK_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_BLOCK_H
#undef CHOIR_KERNELS_CPU_TILE_BLOCK_H
#else
#define CHOIR_KERNELS_CPU_TILE_BLOCK_H
#endif

#include <cstdint>

#include "kernels/cpu/tile.h"
#include "kernels/cpu/tile_pack.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE std::int64_t sums_of_row(std::int64_t row) { return row / 16 * 512 + row % 16 * 16; }

/// 32 x 32 sums over `steps` steps of packed panels: to = (from, or 0 if null) + a b. beside() is called once a step.
template <class Unit, class Beside>
HWY_INLINE void tile_block(const bf16* a, const bf16* b, std::int64_t steps, const float* from, float* to,
                           const Beside& beside) {
  constexpr std::int64_t tile = 256, row = 64;  // floats in a tile, bytes in a row
  if (from) {
    Unit::template load<0>(from, row);
    Unit::template load<1>(from + tile, row);
    Unit::template load<2>(from + 2 * tile, row);
    Unit::template load<3>(from + 3 * tile, row);
  } else {
    Unit::template zero<0>();
    Unit::template zero<1>();
    Unit::template zero<2>();
    Unit::template zero<3>();
  }
  for (std::int64_t s = 0; s < steps; ++s, a += step_elements, b += step_elements) {
    Unit::template load<4>(a, row);
    Unit::template load<6>(b, row);
    Unit::template dot<0, 4, 6>();
    Unit::template load<7>(b + step_elements / 2, row);
    Unit::template dot<1, 4, 7>();
    Unit::template load<5>(a + step_elements / 2, row);
    Unit::template dot<2, 5, 6>();
    Unit::template dot<3, 5, 7>();
    beside();
  }
  Unit::template store<0>(to, row);
  Unit::template store<1>(to + tile, row);
  Unit::template store<2>(to + 2 * tile, row);
  Unit::template store<3>(to + 3 * tile, row);
}

/// The same in vectors: eight rows of sums at a time, in 16 registers.
template <class Unit>
HWY_INLINE void pair_block(const bf16* a, const bf16* b, std::int64_t steps, const float* from, float* to) {
  constexpr int rows = 8;
  for (std::int64_t first = 0; first < panel; first += rows) {
    const std::int64_t corner = sums_of_row(first);
    f32x16 sum[rows][2];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      sum[i][0] = from ? load_vector<f32x16>(from + corner + i * 16) : f32x16{};
      sum[i][1] = from ? load_vector<f32x16>(from + corner + 256 + i * 16) : f32x16{};
    }
    const bf16 *left = a + first * panel, *right = b;
    for (std::int64_t s = 0; s < steps; ++s, left += step_elements, right += step_elements) {
      for (std::int64_t pair = 0; pair < 16; ++pair) {
        const u16x32 low = load_vector<u16x32>(right + pair * panel);
        const u16x32 high = load_vector<u16x32>(right + step_elements / 2 + pair * panel);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          const u16x32 factor = Unit::broadcast(left + i * panel + 2 * pair);
          sum[i][0] = Unit::dot(sum[i][0], factor, low);
          sum[i][1] = Unit::dot(sum[i][1], factor, high);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      store_vector(to + corner + i * 16, sum[i][0]);
      store_vector(to + corner + 256 + i * 16, sum[i][1]);
    }
  }
}

/// The same on what the unit has.
template <class Unit>
HWY_INLINE void block_product(const bf16* a, const bf16* b, std::int64_t steps, const float* from, float* to) {
  if constexpr (requires { Unit::template zero<0>(); }) {
    tile_block<Unit>(a, b, steps, from, to, []() HWY_ATTR {});
  } else {
    pair_block<Unit>(a, b, steps, from, to);
  }
}

/// Sixteen values of bf16 as f32.
HWY_INLINE f32x16 widen(const bf16* from) {
  return reinterpret_cast<f32x16>(__builtin_convertvector(load_vector<u16x16>(from), u32x16) << 16);
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
