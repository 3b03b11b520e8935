// The product of two packed panels, on tiles or in vectors: 32 x 32 sums, which attention and products on tiles consist
// of. Sums of 32 x 32 are stored row by row.
#if defined(CHOIR_KERNELS_CPU_TILE_BLOCK_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_BLOCK_H
#undef CHOIR_KERNELS_CPU_TILE_BLOCK_H
#else
#define CHOIR_KERNELS_CPU_TILE_BLOCK_H
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/band.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/tile_pack.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using ElementRange = IndexRange<std::int64_t>;

/// What of a product of panels is needed, for eight rows of a: the depths, from the first step on, and the columns.
/// Elsewhere a or b is 0, or the sums are not read. Tiles multiply everything; in vectors, sums of columns that are not
/// needed stay as they were.
struct Needed {
  ElementRange depth, columns;
};
inline constexpr std::int64_t rows_together = 8;

/// 32 x 32 sums over `steps` steps of packed panels: to = (from, or 0 if null) + a b. beside() is called once a step.
template <class Unit, class Beside>
HWY_INLINE void tile_block(const bf16* a, const bf16* b, std::int64_t steps, const float* from, float* to,
                           const Beside& beside) {
  constexpr std::int64_t row = 64, row_of_sums = 2 * row;                       // bytes
  constexpr std::int64_t right = 16, lower = 16 * panel, rest = right + lower;  // sums before those of the other tiles
  if (from) {
    Unit::template load<0>(from, row_of_sums);
    Unit::template load<1>(from + right, row_of_sums);
    Unit::template load<2>(from + lower, row_of_sums);
    Unit::template load<3>(from + rest, row_of_sums);
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
  Unit::template store<0>(to, row_of_sums);
  Unit::template store<1>(to + right, row_of_sums);
  Unit::template store<2>(to + lower, row_of_sums);
  Unit::template store<3>(to + rest, row_of_sums);
}

/// Eight rows of such a product in 8 or 16 registers, over these depths. `a` is the first of the rows; b, from and to
/// begin at the first vector of columns.
template <class Unit, int vectors>
void rows_product(const typename Unit::Element* a, const typename Unit::Element* b, ElementRange depth,
                  const float* from, float* to) {
  using Row = typename Unit::Row;
  constexpr std::int64_t word = 4 / static_cast<std::int64_t>(sizeof(*a));  // elements that are multiplied at once
  f32x16 sum[rows_together][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows_together; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[i][v] = f32x16{};
  }
  if (from) {
#pragma GCC unroll 8
    for (int i = 0; i < rows_together; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] = load_vector<f32x16>(from + i * panel + v * 16);
    }
  }
  for (std::int64_t k = depth.begin / word * word; k < depth.end;) {
    const std::int64_t step = k / panel, of_step = k % panel, end = std::min(depth.end, (step + 1) * panel);
    const auto* left = a + step * step_elements + of_step;
    const auto* right = b + step * step_elements + of_step * 16;
#pragma GCC unroll 4
    for (; k < end; k += word, left += word, right += 16 * word) {
      Row row[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) row[v] = load_vector<Row>(right + v * step_elements / 2);
#pragma GCC unroll 8
      for (int i = 0; i < rows_together; ++i) {
        const Row factor = Unit::broadcast(left + i * panel);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[i][v] = Unit::dot(sum[i][v], factor, row[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows_together; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store_vector(to + i * panel + v * 16, sum[i][v]);
  }
}

/// tile_block() on what the unit has, of what needed(first of eight rows) says.
template <class Unit, class NeededBy>
HWY_INLINE void block_product(const typename Unit::Element* a, const typename Unit::Element* b, std::int64_t steps,
                              const float* from, float* to, const NeededBy& needed) {
  if constexpr (requires { Unit::template zero<0>(); }) {
    tile_block<Unit>(a, b, steps, from, to, []() HWY_ATTR {});
  } else {
    for (std::int64_t row = 0; row < panel; row += rows_together) {
      const Needed part = needed(row);
      const ElementRange depth = intersect(part.depth, {0, steps * panel});
      const ElementRange columns = intersect(part.columns, {0, panel});
      if (columns.empty()) continue;
      const std::int64_t first = columns.begin / 16 * 16, corner = row * panel + first;
      const auto* right = b + first / 16 * step_elements / 2;
      const float* before = from ? from + corner : nullptr;
      if (columns.end - first > 16)
        rows_product<Unit, 2>(a + row * panel, right, depth, before, to + corner);
      else
        rows_product<Unit, 1>(a + row * panel, right, depth, before, to + corner);
    }
  }
}

/// 16 elements as f32.
HWY_INLINE f32x16 widen(const bf16* from) {
  return reinterpret_cast<f32x16>(__builtin_convertvector(load_vector<u16x16>(from), u32x16) << 16);
}
HWY_INLINE f32x16 widen(const float* from) { return load_vector<f32x16>(from); }

/// 32 values as elements of the unit.
template <class Unit>
HWY_INLINE void narrow(f32x16 low, f32x16 high, bf16* to) {
  store_vector(to, Unit::round(low, high));
}
template <class Unit>
HWY_INLINE void narrow(f32x16 low, f32x16 high, float* to) {
  store_vector(to, low);
  store_vector(to + 16, high);
}

struct Larger {
  static HWY_INLINE f32x16 of(f32x16 a, f32x16 b) { return a > b ? a : b; }
};
struct Sum {
  static HWY_INLINE f32x16 of(f32x16 a, f32x16 b) { return a + b; }
};
/// All lanes combined, in pairs.
template <class Operation>
HWY_INLINE float combine(f32x16 v) {
  v = Operation::of(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = Operation::of(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = Operation::of(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = Operation::of(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}

/// body(d, vector) for the 16 lanes of `x`, in vectors of Highway.
template <class Body>
HWY_INLINE f32x16 map_lanes(f32x16 x, const Body& body) {
  const hn::ScalableTag<float> d;
  alignas(64) float lane[16];
  store_vector(lane, x);
  for (std::int64_t i = 0; i < 16; i += lanes(d)) store(d, body(d, load(d, lane + i)), lane + i);
  return load_vector<f32x16>(lane);
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
