// Packing of matrices in bf16 into tiles. The unit of packing is a step of a panel: 32 rows of a (or 32 columns of b)
// and 32 of the depth over which a product sums. It fills two tiles, 2 KB, one behind the other:
//
//   a   to[r][k]                              r: row of a, k: depth
//   b   to[c / 16][k / 2][c % 16][k % 2]      c: column of b
//
// Each side has two packers, for matrices whose stored rows run along the depth or across it. A panel is its steps one
// after the other. Rows, columns and depth beyond the matrix are zeros, so products always run on whole tiles.
#if defined(CHOIR_KERNELS_CPU_TILE_PACK_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_PACK_H
#undef CHOIR_KERNELS_CPU_TILE_PACK_H
#else
#define CHOIR_KERNELS_CPU_TILE_PACK_H
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/tile.h"
#include "kernels/cpu/tile_panel.h"
#include "kernels/types.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using cpu::num_panels, cpu::panel, cpu::step_elements;

// ---- Vectors. In an `interleave`, as in the instructions, each 16 bytes of a result come from the same 16 bytes of a,
// b.

using u16x8 = std::uint16_t __attribute__((vector_size(16)));
using u16x16 = std::uint16_t __attribute__((vector_size(32)));
using u32x16 = std::uint32_t __attribute__((vector_size(64)));
using u64x8 = std::uint64_t __attribute__((vector_size(64)));

template <class V>
HWY_INLINE V load_vector(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}
template <class V>
HWY_INLINE void store_vector(void* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

/// a0 b0 a1 b1 ... of the lower (half = 0) or upper (half = 1) half of each 16 bytes.
template <int half, class V, int... lane>
HWY_INLINE V interleave_lanes(V a, V b, std::integer_sequence<int, lane...>) {
  constexpr int count = sizeof...(lane), in_16_bytes = 16 / static_cast<int>(sizeof(a[0]));
  return __builtin_shufflevector(
      a, b,
      ((lane / in_16_bytes * in_16_bytes + half * in_16_bytes / 2 + lane % in_16_bytes / 2) + lane % 2 * count)...);
}
template <int half, class V>
HWY_INLINE V interleave(V a, V b) {
  return interleave_lanes<half>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}
template <int half, class Wide, class V>
HWY_INLINE V interleave_as(V a, V b) {
  return reinterpret_cast<V>(interleave<half>(reinterpret_cast<Wide>(a), reinterpret_cast<Wide>(b)));
}

/// Four times 16 bytes, `stride` bytes apart.
HWY_INLINE u16x32 gather(const char* from, std::int64_t stride) {
  const auto two = [stride](const char* first) HWY_ATTR {
    return __builtin_shufflevector(load_vector<u16x8>(first), load_vector<u16x8>(first + stride), 0, 1, 2, 3, 4, 5, 6,
                                   7, 8, 9, 10, 11, 12, 13, 14, 15);
  };
  return __builtin_shufflevector(two(from), two(from + 2 * stride), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

// ---- Packers of one step: 32 stored rows of 32 elements, `stride` elements apart, into `to`.

/// a [rows, depth] as it stands.
struct PackRows {
  static constexpr bool along_depth = true;
  static HWY_INLINE void step(const bf16* from, std::int64_t stride, bf16* to) {
    for (int r = 0; r < 32; ++r) store_vector(to + r * 32, load_vector<u16x32>(from + r * stride));
  }
};

/// The transpose of a stored [depth, rows]: transposes of 8 x 8, four at a time.
struct PackRowsTransposed {
  static constexpr bool along_depth = false;
  static HWY_INLINE void step(const bf16* from, std::int64_t stride, bf16* to) {
    for (int r = 0; r < 32; r += 8) {
      u16x32 k[8], pair[8], four[8];  // k[i]: rows r ... r + 7 of depths i, 8 + i, 16 + i, 24 + i
      for (int i = 0; i < 8; ++i) k[i] = gather(reinterpret_cast<const char*>(from + i * stride + r), 8 * stride * 2);
      for (int i = 0; i < 8; i += 2) {
        pair[i] = interleave<0>(k[i], k[i + 1]);
        pair[i + 1] = interleave<1>(k[i], k[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        for (int half = 0; half < 2; ++half) {
          four[i + 2 * half] = interleave_as<0, u32x16>(pair[i + half], pair[i + 2 + half]);
          four[i + 2 * half + 1] = interleave_as<1, u32x16>(pair[i + half], pair[i + 2 + half]);
        }
      }
      for (int i = 0; i < 4; ++i) {
        store_vector(to + (r + 2 * i) * 32, interleave_as<0, u64x8>(four[i], four[4 + i]));
        store_vector(to + (r + 2 * i + 1) * 32, interleave_as<1, u64x8>(four[i], four[4 + i]));
      }
    }
  }
};

/// b [depth, columns] in pairs of rows.
struct PackColumns {
  static constexpr bool along_depth = false;
  static HWY_INLINE void step(const bf16* from, std::int64_t stride, bf16* to) {
    const auto in_order = [](u16x32 row) HWY_ATTR {  // that interleave() leaves columns in order
      const auto quads = reinterpret_cast<u64x8>(row);
      return reinterpret_cast<u16x32>(__builtin_shufflevector(quads, quads, 0, 4, 1, 5, 2, 6, 3, 7));
    };
    for (int pair = 0; pair < 16; ++pair) {
      const u16x32 even = in_order(load_vector<u16x32>(from + 2 * pair * stride));
      const u16x32 odd = in_order(load_vector<u16x32>(from + (2 * pair + 1) * stride));
      store_vector(to + pair * 32, interleave<0>(even, odd));
      store_vector(to + 512 + pair * 32, interleave<1>(even, odd));
    }
  }
};

/// b stored transposed, [columns, depth]: transposes of 4 x 4 pairs, four at a time.
struct PackColumnsTransposed {
  static constexpr bool along_depth = true;
  static HWY_INLINE void step(const bf16* from, std::int64_t stride, bf16* to) {
    for (int tile = 0; tile < 2; ++tile) {
      for (int k = 0; k < 32; k += 8) {
        u16x32 c[4];  // c[i]: pairs k / 2 ... k / 2 + 3 of columns i, 4 + i, 8 + i, 12 + i
        for (int i = 0; i < 4; ++i)
          c[i] = gather(reinterpret_cast<const char*>(from + (16 * tile + i) * stride + k), 4 * stride * 2);
        const u16x32 low01 = interleave_as<0, u32x16>(c[0], c[1]), low23 = interleave_as<0, u32x16>(c[2], c[3]);
        const u16x32 high01 = interleave_as<1, u32x16>(c[0], c[1]), high23 = interleave_as<1, u32x16>(c[2], c[3]);
        bf16* row = to + tile * 512 + k / 2 * 32;
        store_vector(row, interleave_as<0, u64x8>(low01, low23));
        store_vector(row + 32, interleave_as<1, u64x8>(low01, low23));
        store_vector(row + 64, interleave_as<0, u64x8>(high01, high23));
        store_vector(row + 96, interleave_as<1, u64x8>(high01, high23));
      }
    }
  }
};

// ---- Whole panels

/// Packs `lines` rows of a, or columns of b, and `depth` of the depth into panels: panel p begins at
/// to + p * num_panels(depth) * step_elements. `from` is the first element, stored rows are `stride` elements apart.
template <class Packer>
HWY_INLINE void pack(const bf16* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, bf16* to) {
  const std::int64_t panels = num_panels(lines), steps = num_panels(depth);
  const auto pack_step = [&](std::int64_t p, std::int64_t s) HWY_ATTR {
    const std::int64_t row = panel * (Packer::along_depth ? p : s), column = panel * (Packer::along_depth ? s : p);
    const bf16* corner = from + row * stride + column;
    bf16* step = to + (p * steps + s) * step_elements;
    const std::int64_t rows = std::min(panel, (Packer::along_depth ? lines : depth) - row);
    const std::int64_t columns = std::min(panel, (Packer::along_depth ? depth : lines) - column);
    if (rows == panel && columns == panel) return Packer::step(corner, stride, step);
    bf16 whole[step_elements];
    std::memset(static_cast<void*>(whole), 0, sizeof(whole));
    for (std::int64_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<void*>(whole + i * panel), corner + i * stride,
                  static_cast<std::size_t>(columns) * sizeof(bf16));
    Packer::step(whole, panel, step);
  };
  if constexpr (Packer::along_depth) {  // in the order of the stored rows
    for (std::int64_t p = 0; p < panels; ++p) {
      for (std::int64_t s = 0; s < steps; ++s) pack_step(p, s);
    }
  } else {
    for (std::int64_t s = 0; s < steps; ++s) {
      for (std::int64_t p = 0; p < panels; ++p) pack_step(p, s);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
