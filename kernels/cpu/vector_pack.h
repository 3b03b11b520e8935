// Packing of matrices into panels of words for products in vectors (vector_matmul_kernel.h). A word is a step of the
// depth: an element of f32, or a pair of bf16. A panel has `width` lines, rows of a or columns of b:
//
//   to[line / width][step][line % width]
//
// Lines and depth beyond the matrix are zeros.
#if defined(CHOIR_KERNELS_CPU_VECTOR_PACK_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_VECTOR_PACK_H
#undef CHOIR_KERNELS_CPU_VECTOR_PACK_H
#else
#define CHOIR_KERNELS_CPU_VECTOR_PACK_H
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/tile_pack.h"
#include "kernels/cpu/vector_matmul.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using u32x8 = std::uint32_t __attribute__((vector_size(32)));

/// Lines of a matrix over `depth` of the depth. Stored rows, `stride` elements apart, run along the depth or across it.
template <class In>
struct Lines {
  const In* from;
  std::int64_t stride, lines, depth;
  bool along_depth;

  std::int64_t steps() const { return (depth + cpu::step_depth<In> - 1) / cpu::step_depth<In>; }
  /// Word `step` of line `line`.
  std::uint32_t word(std::int64_t line, std::int64_t step) const {
    std::uint32_t bits = 0;
    const std::int64_t first = step * cpu::step_depth<In>, count = std::min(cpu::step_depth<In>, depth - first);
    for (std::int64_t i = 0; i < count; ++i) {
      const In* element = along_depth ? from + line * stride + first + i : from + (first + i) * stride + line;
      std::memcpy(reinterpret_cast<char*>(&bits) + i * static_cast<std::int64_t>(sizeof(In)), element, sizeof(In));
    }
    return bits;
  }
};

/// One step of lines that run across the depth, as many as `Words` has.
template <class Words, class Halves>
HWY_INLINE void copy_step(const float* from, std::int64_t, std::uint32_t* to) {
  store_vector(to, load_vector<Words>(from));
}
template <class Words, class Halves>
HWY_INLINE void copy_step(const bf16* from, std::int64_t stride, std::uint32_t* to) {
  const Words even = __builtin_convertvector(load_vector<Halves>(from), Words);
  const Words odd = __builtin_convertvector(load_vector<Halves>(from + stride), Words);
  store_vector(to, even | odd << 16);
}

/// Packs all lines of `m`. Panels are m.steps() * width words apart.
template <std::int64_t width, class In>
HWY_INLINE void pack_words(const Lines<In>& m, std::uint32_t* to) {
  constexpr std::int64_t step = cpu::step_depth<In>, vector = std::min<std::int64_t>(width, cpu::vector_columns);
  const std::int64_t steps = m.steps(), whole_steps = m.depth / step;
  const auto pack_rest = [&](std::int64_t line, std::int64_t begin) HWY_ATTR {  // a vector of lines, from step `begin`
    for (std::int64_t s = begin; s < steps; ++s) {
      for (std::int64_t x = line; x < line + vector; ++x)
        to[x / width * steps * width + s * width + x % width] = x < m.lines ? m.word(x, s) : 0;
    }
  };
  const auto end = (m.lines + width - 1) / width * width;
  const auto place = [&](std::int64_t line) { return to + line / width * steps * width + line % width; };
  if (m.along_depth) {
    for (std::int64_t line = 0; line < end; line += vector) {
      std::int64_t s = 0;
      if constexpr (vector == cpu::vector_columns) {
        for (; line + vector <= m.lines && s + 16 <= whole_steps; s += 16) {
          const auto* from = reinterpret_cast<const char*>(m.from + line * m.stride + s * step);
          const std::int64_t stride_bytes = m.stride * static_cast<std::int64_t>(sizeof(In));
          for (std::int64_t i = 0; i < vector; ++i) __builtin_prefetch(from + i * stride_bytes + 256);
          transpose_words<width>(from, stride_bytes, place(line) + s * width);
        }
      }
      pack_rest(line, s);
    }
    return;
  }
  // A cache line of a stored row at a time, for a group of steps, which fills cache lines of the panels.
  constexpr std::int64_t group = 16, together = 64 / static_cast<std::int64_t>(sizeof(In)) / vector;
  for (std::int64_t begin = 0; begin < whole_steps; begin += group) {
    const std::int64_t count = std::min(group, whole_steps - begin);
    for (std::int64_t line = 0; line + vector <= m.lines; line += together * vector) {
      const In* row = m.from + begin * step * m.stride + line;
      std::uint32_t* words[together];
      for (std::int64_t i = 0; i < together; ++i) words[i] = place(line + i * vector) + begin * width;
      const std::int64_t vectors = std::min(together, (m.lines - line) / vector);
      for (std::int64_t s = 0; s < count; ++s, row += step * m.stride) {
        for (std::int64_t i = 0; i < step; ++i) __builtin_prefetch(row + (group * step + i) * m.stride);
        for (std::int64_t i = 0; i < vectors; ++i) {
          if constexpr (vector == 8)
            copy_step<u32x8, u16x8>(row + i * vector, m.stride, words[i] + s * width);
          else
            copy_step<u32x16, u16x16>(row + i * vector, m.stride, words[i] + s * width);
        }
      }
    }
  }
  for (std::int64_t line = 0; line < end; line += vector) pack_rest(line, line + vector <= m.lines ? whole_steps : 0);
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
