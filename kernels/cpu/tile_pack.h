// Packing of matrices into panels for tiles and vectors. The unit of packing is a step of a panel: 32 rows of a (or 32
// columns of b) and 32 of the depth over which a product sums. In bf16 it fills two tiles, 2 KB, one behind the other:
//
//   a          to[r][k]                              r: row of a, k: depth
//   b, bf16    to[c / 16][k / 2][c % 16][k % 2]      c: column of b
//   b, f32     to[c / 16][k][c % 16]
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

/// Words of 32 bits, 0 to 15 of 16 stored lines: to[word * width + line].
template <std::int64_t width>
HWY_INLINE void transpose_words(const char* from, std::int64_t stride_bytes, void* to) {
  u16x32 line[16], pair[16];
  for (int i = 0; i < 16; ++i) line[i] = load_vector<u16x32>(from + i * stride_bytes);
  for (int i = 0; i < 16; i += 2) {
    pair[i] = interleave_as<0, u32x16>(line[i], line[i + 1]);
    pair[i + 1] = interleave_as<1, u32x16>(line[i], line[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // line[i + n]: words n, 4 + n, 8 + n, 12 + n of lines i ... i + 3
    for (int half = 0; half < 2; ++half) {
      line[i + 2 * half] = interleave_as<0, u64x8>(pair[i + half], pair[i + 2 + half]);
      line[i + 2 * half + 1] = interleave_as<1, u64x8>(pair[i + half], pair[i + 2 + half]);
    }
  }
  const auto even = [](u16x32 a, u16x32 b) HWY_ATTR {  // 16 bytes of every 32
    return reinterpret_cast<u16x32>(
        __builtin_shufflevector(reinterpret_cast<u64x8>(a), reinterpret_cast<u64x8>(b), 0, 1, 4, 5, 8, 9, 12, 13));
  };
  const auto odd = [](u16x32 a, u16x32 b) HWY_ATTR {
    return reinterpret_cast<u16x32>(
        __builtin_shufflevector(reinterpret_cast<u64x8>(a), reinterpret_cast<u64x8>(b), 2, 3, 6, 7, 10, 11, 14, 15));
  };
  for (int n = 0; n < 4; ++n) {
    const u16x32 low0 = even(line[n], line[4 + n]), low1 = odd(line[n], line[4 + n]);
    const u16x32 high0 = even(line[8 + n], line[12 + n]), high1 = odd(line[8 + n], line[12 + n]);
    const auto column = [to](int word) { return static_cast<char*>(to) + word * width * 4; };
    store_vector(column(n), even(low0, high0));
    store_vector(column(4 + n), even(low1, high1));
    store_vector(column(8 + n), odd(low0, high0));
    store_vector(column(12 + n), odd(low1, high1));
  }
}
/// The transpose of 32 x 32 words in f32: rows of 16 of them are `width` elements apart in `to`, those of lines 16 to
/// 31 `next_lines` elements behind those of lines 0 to 15.
template <std::int64_t width>
HWY_INLINE void transpose_step(const float* from, std::int64_t stride, float* to, std::int64_t next_lines) {
  for (std::int64_t line = 0; line < 2; ++line) {
    for (std::int64_t word = 0; word < 2; ++word)
      transpose_words<width>(reinterpret_cast<const char*>(from + 16 * (line * stride + word)), stride * 4,
                             to + line * next_lines + word * 16 * width);
  }
}

// ---- Packers of one step: 32 stored rows of 32 elements, `stride` elements apart, into `to`.

/// a [rows, depth] as it stands.
struct PackRows {
  static constexpr bool along_depth = true;
  static HWY_INLINE void step(const bf16* from, std::int64_t stride, bf16* to) {
    for (int r = 0; r < 32; ++r) store_vector(to + r * 32, load_vector<u16x32>(from + r * stride));
  }
  static HWY_INLINE void step(const float* from, std::int64_t stride, float* to) {
    for (int r = 0; r < 32; ++r) {
      store_vector(to + r * 32, load_vector<u16x32>(from + r * stride));
      store_vector(to + r * 32 + 16, load_vector<u16x32>(from + r * stride + 16));
    }
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
  static HWY_INLINE void step(const float* from, std::int64_t stride, float* to) {
    transpose_step<32>(from, stride, to, 16);
  }
};

/// b [depth, columns]: bf16 in pairs of rows.
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
  static HWY_INLINE void step(const float* from, std::int64_t stride, float* to) {
    for (int k = 0; k < 32; ++k) {
      store_vector(to + k * 16, load_vector<u16x32>(from + k * stride));
      store_vector(to + 512 + k * 16, load_vector<u16x32>(from + k * stride + 16));
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
  static HWY_INLINE void step(const float* from, std::int64_t stride, float* to) {
    transpose_step<16>(from, stride, to, 512);
  }
};

// ---- Whole panels

/// Packs `lines` rows of a, or columns of b, and `depth` of the depth into panels: panel p begins at
/// to + p * num_panels(depth) * step_elements. `from` is the first element, stored rows are `stride` elements apart.
template <class Packer, class Element>
HWY_INLINE void pack(const Element* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, Element* to) {
  const std::int64_t panels = num_panels(lines), steps = num_panels(depth);
  const auto pack_step = [&](std::int64_t p, std::int64_t s) HWY_ATTR {
    const std::int64_t row = panel * (Packer::along_depth ? p : s), column = panel * (Packer::along_depth ? s : p);
    const Element* corner = from + row * stride + column;
    Element* step = to + (p * steps + s) * step_elements;
    const std::int64_t rows = std::min(panel, (Packer::along_depth ? lines : depth) - row);
    const std::int64_t columns = std::min(panel, (Packer::along_depth ? depth : lines) - column);
    for (std::int64_t i = 0; i < rows; ++i) {  // of the next stored rows
      for (std::int64_t x = 0; x < columns; x += 64 / static_cast<std::int64_t>(sizeof(Element)))
        __builtin_prefetch(corner + (panel + i) * stride + x);
    }
    if (rows == panel && columns == panel) return Packer::step(corner, stride, step);
    Element whole[step_elements];
    std::memset(static_cast<void*>(whole), 0, sizeof(whole));
    for (std::int64_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<void*>(whole + i * panel), corner + i * stride,
                  static_cast<std::size_t>(columns) * sizeof(Element));
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
