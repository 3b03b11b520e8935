// The small matrix product inside a kernel: a tile of the result stays in registers during the loop over the depth.
//
//   c [rows, 2 vectors] = a [rows, depth] b [depth, 2 vectors]   (or += , or row by row rescaled and +=)
//
// a is read one element at a time and broadcast, so it may be transposed; b and c are read in aligned vectors. With 16
// registers of 2 operations per cycle and 5 cycles latency a tile needs at least 10 sums: 6 x 2; with 32, 8 x 2.
// Included once per instruction set, like simd.h.

#if defined(CHOIR_KERNELS_CPU_REGISTER_TILE_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_REGISTER_TILE_H
#undef CHOIR_KERNELS_CPU_REGISTER_TILE_H
#else
#define CHOIR_KERNELS_CPU_REGISTER_TILE_H
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

inline constexpr int tile_rows = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL ? 8 : 6;
inline constexpr int tile_vectors = 2;

enum class Update {
  set,          ///< c = a b
  add,          ///< c += a b
  rescale_add,  ///< c = rescale[row] c + a b
};

/// Element (row, k) of a is a[row * row_step + k * depth_step].
template <class A>
struct TileOperand {
  const A* data;
  std::int64_t row_step, depth_step;
};

template <Update update, int vectors, class D, class A = hn::TFromD<D>>
HWY_INLINE void tile_product(D d, TileOperand<A> a, const A* HWY_RESTRICT b, std::int64_t b_stride, std::int64_t depth,
                             A* HWY_RESTRICT c, std::int64_t c_stride, const A* HWY_RESTRICT rescale = nullptr) {
  const std::int64_t step = lanes(d);
  hn::Vec<D> sum[tile_rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sum[i][j] = hn::Zero(d);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    hn::Vec<D> row[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) row[j] = hn::Load(d, b + k * b_stride + j * step);
#pragma GCC unroll 8
    for (int i = 0; i < tile_rows; ++i) {
      const auto factor = hn::Set(d, a.data[i * a.row_step + k * a.depth_step]);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] = hn::MulAdd(factor, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      A* to = c + i * c_stride + j * step;
      auto value = sum[i][j];
      if constexpr (update == Update::add) value = hn::Add(hn::Load(d, to), value);
      if constexpr (update == Update::rescale_add) value = hn::MulAdd(hn::Set(d, rescale[i]), hn::Load(d, to), value);
      hn::Store(value, d, to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
