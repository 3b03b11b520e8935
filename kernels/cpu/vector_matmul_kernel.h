// Matrix products in vectors: c = a b + bias (+ c), sums in f32. The kernel, for any unit (tile.h).
//
// A block of 8 x 48 elements of c keeps its sums in 24 registers. In each step of the depth it reads three vectors of
// a packed panel of b, and of each row of a one word, which is multiplied with all three. The rows of a are read where
// they are; they are packed only if they are stored transposed. Around the block, from the outside in:
//
//   columns of c whose packed b stays in the third cache
//     rows of c whose sums are kept between chunks of the depth      all rows, if c keeps them
//       chunks of the depth: the columns of b are packed
//         rows whose a stays in the second cache
//           panels of b, rows: a block of 8 x 48
//
// While a block runs, it asks for what the next one reads first: the next rows of a, and a part of the next panel of b;
// and for its own place in c.
// The order in which an element is summed depends on the depth alone, not on the threads or on the other sizes.
#if defined(CHOIR_KERNELS_CPU_VECTOR_MATMUL_KERNEL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_VECTOR_MATMUL_KERNEL_H
#undef CHOIR_KERNELS_CPU_VECTOR_MATMUL_KERNEL_H
#else
#define CHOIR_KERNELS_CPU_VECTOR_MATMUL_KERNEL_H
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/vector_matmul.h"
#include "kernels/cpu/vector_pack.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using cpu::block_columns, cpu::block_rows, cpu::MatmulParts, cpu::vector_columns, cpu::VectorMatmulMemory,
    cpu::VectorMatmulPlan;

/// What the product does with the sums of one chunk, 16 of a row at a time. Sums of f32 are added up in c, those of
/// bf16 in memory of their own, which is not read in the first chunk and not written in the last.
template <class Unit, class Out>
struct VectorOutput {
  Matmul<typename Unit::Element, Out> args;
  bool first, last;          ///< of the chunks
  std::int64_t sums_stride;  ///< elements from one row to the next

  static constexpr bool adds_up_in_c = std::is_same_v<Out, float>;
  bool reads_c() const { return args.accumulate || (adds_up_in_c && !first); }

  /// Sums for `count` elements, at most 16, of row i of c from column j on.
  template <Epilogue epilogue>
  HWY_INLINE void put(std::int64_t i, std::int64_t j, std::int64_t count, float* sums, f32x16 value) const {
    if (!adds_up_in_c && !first) value += load_vector<f32x16>(sums);
    if (!adds_up_in_c && !last) return store_vector(sums, value);
    Out* c = args.c + i * args.c_stride + j;
    const bool has_bias = adds_up_in_c && !first;  // c has the sums of the chunks before, with bias and what was in c
    if (args.bias && !has_bias) value += read_lanes(args.bias + j, count);
    if (reads_c()) value += read_lanes(c, count);
    if constexpr (epilogue != Epilogue::none) {
      if (last) value = activate<Unit, epilogue>(value, args.before + i * args.before_stride + j, count);
    }
    write_lanes<Unit>(c, count, value);
  }
};

/// Eight rows of a, where they are or packed.
template <class In>
struct RowsOfA {
  const In* rows[2];    ///< rows 0 and 4
  std::int64_t stride;  ///< elements from one row to the next
  const In* next;       ///< what the next block reads
};

/// Where a block of c goes: asks for a row of it with each 16 steps. A block reads more than the first cache holds,
/// which drives out what has been there for long: rows that are only written are asked for at the end. Those that are
/// read may come from memory, which takes longer.
template <class Out>
struct PlaceOfBlock {
  Out* c;
  std::int64_t c_stride;
  bool reads_c;
  Out* before;  ///< of the epilogue, or null
  std::int64_t before_stride;

  // Always inlined: GCC takes a function that only prefetches for one without effects, and drops its calls.
  static HWY_INLINE void fetch(const Out* first, std::int64_t stride, std::int64_t row) {
    if (row < 0 || row >= block_rows) return;
    for (std::int64_t x = 0; x < block_columns; x += 64 / static_cast<std::int64_t>(sizeof(Out)))
      __builtin_prefetch(first + row * stride + x);
  }
  HWY_INLINE void fetch(std::int64_t begin, std::int64_t steps) const {
    const std::int64_t early = begin / 16, late = (steps - begin - 1) / 16;
    fetch(c, c_stride, reads_c ? early : late);
    if (before) fetch(before, before_stride, early);
  }
};

/// Sums of 8 rows and `vectors` vectors of columns over `steps` steps, for finish(row, vector, sums).
template <class Unit, int vectors, bool packed, class Out, class Finish>
HWY_INLINE void vector_block(std::int64_t steps, RowsOfA<typename Unit::Element> a, const std::uint32_t* b,
                             const std::uint32_t* next_b, const PlaceOfBlock<Out>& place, const Finish& finish) {
  using Row = typename Unit::Row;
  constexpr std::int64_t step = cpu::step_depth<typename Unit::Element>;  // elements in a word
  constexpr std::int64_t advance = packed ? block_rows * step : step;
  const std::int64_t stride = packed ? step : a.stride;
  f32x16 sum[block_rows][vectors] = {};
  for (std::int64_t begin = 0; begin < steps; begin += 16) {
    // A line of each of the next rows, or as many of a panel; of the next b, a share.
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; ++r) __builtin_prefetch(packed ? a.next + r * 16 * step : a.next + r * stride);
    a.next += packed ? block_rows * 16 * step : 16 * step;
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) __builtin_prefetch(next_b + 16 * line, 0, 2);
    next_b += 64;
    place.fetch(begin, steps);
    const std::int64_t count = std::min<std::int64_t>(16, steps - begin);
#pragma GCC unroll 1
    for (std::int64_t x = 0; x < count; ++x) {
      Row right[vectors];
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) right[v] = load_vector<Row>(b + v * vector_columns);
      b += block_columns;
#pragma GCC unroll 8
      for (int r = 0; r < block_rows; ++r) {
        const Row left = Unit::broadcast(a.rows[r / 4] + r % 4 * stride);
#pragma GCC unroll 3
        for (int v = 0; v < vectors; ++v) sum[r][v] = Unit::dot(sum[r][v], left, right[v]);
      }
      a.rows[0] += advance;
      a.rows[1] += advance;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < block_rows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) finish(r, v, sum[r][v]);
  }
}

/// body(a constant): gelu, gelu_gradient, or none for the other epilogues, which leave the sums as they are.
template <class Body>
HWY_INLINE void with_activation(Epilogue epilogue, const Body& body) {
  if (epilogue == Epilogue::gelu)
    body(std::integral_constant<Epilogue, Epilogue::gelu>{});
  else if (epilogue == Epilogue::gelu_gradient)
    body(std::integral_constant<Epilogue, Epilogue::gelu_gradient>{});
  else
    body(std::integral_constant<Epilogue, Epilogue::none>{});
}

/// What is multiplied between two packings: rows of a and columns of b over one chunk of the depth.
template <class Unit, class Out>
struct VectorChunk {
  using In = typename Unit::Element;
  const Matmul<In, Out>& args;
  VectorOutput<Unit, Out> output;
  MatmulParts::Range rows, columns;  ///< of c
  std::int64_t first_depth, steps;
  std::int64_t first_packed;  ///< the row of a from which on rows are packed; those before it are read where they are
  const std::uint32_t *a, *b;
  float* sums;  ///< of the first element; see VectorMatmulMemory

  HWY_INLINE void multiply() const {
    const std::int64_t panel_words = block_columns * steps;
    const std::uint32_t* panel_of_b = b;
    for (std::int64_t j = columns.begin; j < columns.end; j += block_columns, panel_of_b += panel_words) {
      const std::uint32_t* next_b = j + block_columns < columns.end ? panel_of_b + panel_words : b;
      for (std::int64_t i = rows.begin; i < rows.end; i += block_rows, next_b += steps / 16 * 64)
        multiply_block(i, j, panel_of_b, next_b);
    }
  }

 private:
  HWY_INLINE void multiply_block(std::int64_t i, std::int64_t j, const std::uint32_t* panel_of_b,
                                 const std::uint32_t* next_b) const {
    const std::int64_t height = std::min(block_rows, rows.end - i), width = std::min(block_columns, columns.end - j);
    const bool activates = args.epilogue == Epilogue::gelu || args.epilogue == Epilogue::gelu_gradient;
    const PlaceOfBlock<Out> place{.c = args.c + i * args.c_stride + j,
                                  .c_stride = args.c_stride,
                                  .reads_c = output.reads_c(),
                                  .before = activates ? args.before + i * args.before_stride + j : nullptr,
                                  .before_stride = args.before_stride};
    float* kept = sums + (i - rows.begin) * output.sums_stride + j - columns.begin;
    if (height == block_rows && width == block_columns && !activates) {
      const VectorOutput<Unit, Out> copy = output;  // no store can change it: read once, not after each
      return multiply_vectors<3>(i, panel_of_b, next_b, place, [&](int r, int v, f32x16 sum) HWY_ATTR {
        copy.template put<Epilogue::none>(i + r, j + v * vector_columns, vector_columns,
                                          kept + r * copy.sums_stride + v * vector_columns, sum);
      });
    }

    alignas(64) float block[block_rows * block_columns];
    const auto hold = [&](int r, int v, f32x16 sum)
                          HWY_ATTR { store_vector(block + r * block_columns + v * vector_columns, sum); };
    if (width > 2 * vector_columns)
      multiply_vectors<3>(i, panel_of_b, next_b, place, hold);
    else if (width > vector_columns)
      multiply_vectors<2>(i, panel_of_b, next_b, place, hold);
    else
      multiply_vectors<1>(i, panel_of_b, next_b, place, hold);
    with_activation(args.epilogue, [&]<Epilogue epilogue>(std::integral_constant<Epilogue, epilogue>) HWY_ATTR {
      for (std::int64_t r = 0; r < height; ++r) {
        const auto put = [&](std::int64_t x, std::int64_t count) HWY_ATTR {
          output.template put<epilogue>(i + r, j + x, count, kept + r * output.sums_stride + x,
                                        load_vector<f32x16>(block + r * block_columns + x));
        };
        if (width == block_columns) {
#pragma GCC unroll 3
          for (std::int64_t x = 0; x < block_columns; x += vector_columns) put(x, vector_columns);
        } else {
          for (std::int64_t x = 0; x < width; x += vector_columns) put(x, std::min(vector_columns, width - x));
        }
      }
    });
  }

  template <int vectors, class Finish>
  HWY_INLINE void multiply_vectors(std::int64_t i, const std::uint32_t* panel_of_b, const std::uint32_t* next_b,
                                   const PlaceOfBlock<Out>& place, const Finish& finish) const {
    if (i < first_packed) {
      const std::int64_t stride = args.a_stride;
      const In* row = args.a + i * stride + first_depth;
      vector_block<Unit, vectors, false>(steps, {{row, row + 4 * stride}, stride, row + block_rows * stride},
                                         panel_of_b, next_b, place, finish);
    } else {
      constexpr std::int64_t step = cpu::step_depth<In>;
      const auto* row = reinterpret_cast<const In*>(a + (i - std::max(first_packed, rows.begin)) * steps);
      vector_block<Unit, vectors, true>(steps, {{row, row + 4 * step}, step, row + block_rows * step * steps},
                                        panel_of_b, next_b, place, finish);
    }
  }
};

/// sums[line] += the words of `lines` packed lines of a over `steps` steps, for Epilogue::bias_gradient.
template <class In>
HWY_INLINE void add_lines(const std::uint32_t* packed, std::int64_t lines, std::int64_t steps, float* sums) {
  constexpr std::int64_t chains = 4, words = 2 * block_rows;  // two steps in a vector
  for (std::int64_t line = 0; line < lines; line += block_rows, packed += steps * block_rows) {
    f32x16 sum[chains] = {};
    const auto add = [](u32x16 word, f32x16& to) HWY_ATTR {
      if constexpr (std::is_same_v<In, float>)
        to += reinterpret_cast<f32x16>(word);
      else
        to += reinterpret_cast<f32x16>(word << 16) + reinterpret_cast<f32x16>(word & 0xffff0000u);
    };
    std::int64_t s = 0;
    for (; s + 2 * chains <= steps; s += 2 * chains) {
      for (std::int64_t i = 0; i < chains; ++i) add(load_vector<u32x16>(packed + s * block_rows + i * words), sum[i]);
    }
    for (; s < steps; ++s) {
      std::uint32_t word[words] = {};
      std::memcpy(word, packed + s * block_rows, block_rows * sizeof(std::uint32_t));
      add(load_vector<u32x16>(word), sum[0]);
    }
    const f32x16 all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (std::int64_t r = 0; r < std::min(block_rows, lines - line); ++r)
      sums[line + r] += all[r] + all[block_rows + r];
  }
}

/// Computes part `index` of plan.parts of c.
template <class Unit, class Out>
HWY_INLINE void vector_matmul_part(const Matmul<typename Unit::Element, Out>& args, const VectorMatmulPlan& plan,
                                   int index, void* workspace) {
  using In = typename Unit::Element;
  constexpr std::int64_t step = cpu::step_depth<In>;
  const auto rows = MatmulParts::part(args.m, block_rows, plan.parts.rows, index / plan.parts.columns);
  const auto columns = MatmulParts::part(args.n, block_columns, plan.parts.columns, index % plan.parts.columns);
  const VectorMatmulMemory memory(plan, workspace);
  const auto lines_of = [](const In* from, std::int64_t stride, std::int64_t lines, std::int64_t depth,
                           bool along_depth) {
    return Lines<In>{from, stride, lines, depth, along_depth};
  };

  for (std::int64_t j = columns.begin; j < columns.end; j += plan.columns_packed) {
    const std::int64_t columns_end = std::min(columns.end, j + plan.columns_packed);
    for (std::int64_t kept = rows.begin; kept < rows.end; kept += plan.rows_kept) {
      const std::int64_t kept_end = std::min(rows.end, kept + plan.rows_kept);
      for (std::int64_t p = 0; p < args.k; p += plan.steps_of_chunk * step) {
        const std::int64_t depth = std::min(plan.steps_of_chunk * step, args.k - p);
        const In* b = args.b + (args.transpose_b ? j * args.b_stride + p : p * args.b_stride + j);
        pack_words<block_columns>(lines_of(b, args.b_stride, columns_end - j, depth, args.transpose_b), memory.b);
        for (std::int64_t i = kept; i < kept_end; i += plan.rows_packed) {
          const std::int64_t rows_end = std::min(kept_end, i + plan.rows_packed);
          // Whole blocks of rows that run along the depth, in whole words, are read where they are.
          const bool in_place = !args.transpose_a && depth % step == 0;
          const std::int64_t first_packed = in_place ? i + (rows_end - i) / block_rows * block_rows : i;
          const In* a =
              args.a + (args.transpose_a ? p * args.a_stride + first_packed : first_packed * args.a_stride + p);
          pack_words<block_rows>(lines_of(a, args.a_stride, rows_end - first_packed, depth, !args.transpose_a),
                                 memory.a);
          if (args.epilogue == Epilogue::bias_gradient && j == 0)
            add_lines<In>(memory.a, rows_end - i, (depth + step - 1) / step, args.bias_gradient + i);
          VectorChunk<Unit, Out>{.args = args,
                                 .output = {.args = args,
                                            .first = p == 0,
                                            .last = p + depth == args.k,
                                            .sums_stride = plan.columns_packed},
                                 .rows = {i, rows_end},
                                 .columns = {j, columns_end},
                                 .first_depth = p,
                                 .steps = (depth + step - 1) / step,
                                 .first_packed = first_packed,
                                 .a = memory.a,
                                 .b = memory.b,
                                 .sums = memory.sums + (i - kept) * plan.columns_packed}
              .multiply();
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
