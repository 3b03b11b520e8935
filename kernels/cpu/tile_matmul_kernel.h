// Matrix products in bf16 on tiles: c = epilogue(a b + bias (+ c)), sums in f32. The kernel, for any unit (tile.h).
//
// A product of 32 x 32 elements of c keeps its sums in four tiles and runs over packed panels of a and b (tile_pack.h).
// Around it, from the outside in:
//
//   columns of c whose panels of b stay in the second cache
//     rows of c whose sums stay there between chunks of the depth    all rows, if there is one chunk
//       chunks of the depth: the columns of b are packed
//         rows whose panels of a stay in the second cache: they are packed
//           panels of a, panels of b: a block of 32 x 32
//
// While a block runs, the sums of the block before it are converted and stored a few rows a step, beside the tiles. The
// order in which an element is summed depends on the depth alone, not on the threads or on the other sizes.
#if defined(CHOIR_KERNELS_CPU_TILE_MATMUL_KERNEL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_MATMUL_KERNEL_H
#undef CHOIR_KERNELS_CPU_TILE_MATMUL_KERNEL_H
#else
#define CHOIR_KERNELS_CPU_TILE_MATMUL_KERNEL_H
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/tile_pack.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using cpu::MatmulParts, cpu::TileMatmulMemory, cpu::TileMatmulPlan;

/// Stores rows of sums in c: adds the bias, adds to c if asked, computes the epilogue, rounds.
template <class Unit, class Out>
struct TileOutput {
  const Matmul<bf16, Out>& args;
  bool streams;  ///< past the caches: c is too large to be there when it is read

  explicit TileOutput(const Matmul<bf16, Out>& product) : args(product) {
    constexpr std::int64_t large = 1 << 20;
    const auto aligned = [](std::int64_t bytes) { return bytes % 64 == 0; };
    streams = !args.accumulate && args.m * args.n * static_cast<std::int64_t>(sizeof(Out)) > large &&
              aligned(reinterpret_cast<std::intptr_t>(args.c)) &&
              aligned(args.c_stride * static_cast<std::int64_t>(sizeof(Out)));
  }

  /// 32 sums for c[i][j ...]; fewer at the last columns.
  [[gnu::always_inline]] void row(std::int64_t i, std::int64_t j, f32x16 low, f32x16 high) const {
    constexpr std::int64_t half = lanes_of_sums;
    Out* c = args.c + i * args.c_stride + j;
    const std::int64_t count = args.n - j;
    if (count < panel) {
      write_lanes<Unit>(c, std::min(half, count), finish(i, j, std::min(half, count), low));
      if (count > half) write_lanes<Unit>(c + half, count - half, finish(i, j + half, count - half, high));
      return;
    }
    low = finish(i, j, half, low);
    high = finish(i, j + half, half, high);
    if constexpr (std::is_same_v<Out, bf16>) {
      put(c, Unit::round(low, high));
    } else {
      put(c, reinterpret_cast<u16x32>(low));
      put(c + half, reinterpret_cast<u16x32>(high));
    }
  }

 private:
  [[gnu::always_inline]] f32x16 finish(std::int64_t i, std::int64_t j, std::int64_t count, f32x16 sum) const {
    if (args.bias) sum += read_lanes(args.bias + j, count);
    if (args.accumulate) sum += read_lanes(args.c + i * args.c_stride + j, count);
    const auto before = [&] { return args.before + i * args.before_stride + j; };
    if (args.epilogue == Epilogue::gelu) return activate<Unit, Epilogue::gelu>(sum, before(), count);
    if (args.epilogue == Epilogue::gelu_gradient) return activate<Unit, Epilogue::gelu_gradient>(sum, before(), count);
    return sum;
  }
  [[gnu::always_inline]] void put(Out* to, u16x32 value) const {
    if (streams)
      Unit::stream(to, value);
    else
      store_vector(to, value);
  }
};

/// sums[line] += the elements of `lines` packed lines of a over `steps` steps, for Epilogue::bias_gradient.
HWY_INLINE void add_lines(const bf16* packed, std::int64_t lines, std::int64_t steps, float* sums) {
  for (std::int64_t line = 0; line < lines; ++line) {
    const bf16* row = packed + line / panel * steps * step_elements + line % panel * panel;
    f32x16 even{}, odd{};
    for (std::int64_t s = 0; s < steps; ++s, row += step_elements) {
      const auto pairs = load_vector<u32x16>(row);
      even += reinterpret_cast<f32x16>(pairs << 16);
      odd += reinterpret_cast<f32x16>(pairs & 0xffff0000u);
    }
    sums[line] += combine<Sum>(even + odd);
  }
}

/// Computes part `index` of plan.parts of c.
template <class Unit, class Out>
HWY_INLINE void tile_matmul_part(const Matmul<bf16, Out>& args, const TileMatmulPlan& plan, int index,
                                 void* workspace) {
  const auto [first_row, end_row] = MatmulParts::part(args.m, panel, plan.parts.rows, index / plan.parts.columns);
  const auto [first_column, end_column] =
      MatmulParts::part(args.n, panel, plan.parts.columns, index % plan.parts.columns);
  const TileMatmulMemory memory(plan, workspace);
  const TileOutput<Unit, Out> output(args);

  struct {  // the block whose sums are finished, and how many of its rows are stored
    std::int64_t i = 0, j = 0, rows = 0, stored = 0;
  } before;
  int turn = 0;  // which of memory.finished is of the block that runs
  const auto store_rows = [&](std::int64_t count) HWY_ATTR {
    const std::int64_t end = std::min(before.rows, before.stored + count);
    for (; before.stored < end; ++before.stored) {
      const float* sums = memory.finished[1 - turn] + before.stored * panel;
      output.row(before.i + before.stored, before.j, load_vector<f32x16>(sums), load_vector<f32x16>(sums + 16));
    }
  };
  const auto pack_a = [&](std::int64_t i, std::int64_t p, std::int64_t lines, std::int64_t depth) HWY_ATTR {
    if (args.transpose_a)
      pack<PackRowsTransposed>(args.a + p * args.a_stride + i, args.a_stride, lines, depth, memory.a);
    else
      pack<PackRows>(args.a + i * args.a_stride + p, args.a_stride, lines, depth, memory.a);
  };
  const auto pack_b = [&](std::int64_t j, std::int64_t p, std::int64_t lines, std::int64_t depth) HWY_ATTR {
    if (args.transpose_b)
      pack<PackColumnsTransposed>(args.b + j * args.b_stride + p, args.b_stride, lines, depth, memory.b);
    else
      pack<PackColumns>(args.b + p * args.b_stride + j, args.b_stride, lines, depth, memory.b);
  };

  Unit::configure();
  for (std::int64_t j0 = first_column; j0 < end_column; j0 += plan.columns_packed) {
    const std::int64_t width = std::min(plan.columns_packed, end_column - j0);
    for (std::int64_t kept = first_row; kept < end_row; kept += plan.rows_kept) {
      const std::int64_t kept_end = std::min(end_row, kept + plan.rows_kept);
      for (std::int64_t p0 = 0; p0 < args.k; p0 += plan.depth_of_chunk) {
        const std::int64_t depth = std::min(plan.depth_of_chunk, args.k - p0), steps = num_panels(depth);
        const bool last = p0 + depth == args.k;
        const std::int64_t rows_a_step = (panel + steps - 1) / steps;
        pack_b(j0, p0, width, depth);
        for (std::int64_t i0 = kept; i0 < kept_end; i0 += plan.rows_packed) {
          const std::int64_t height = std::min(plan.rows_packed, kept_end - i0);
          pack_a(i0, p0, height, depth);
          if (args.epilogue == Epilogue::bias_gradient && j0 == 0)
            add_lines(memory.a, height, steps, args.bias_gradient + i0);
          for (std::int64_t i = 0; i < height; i += panel) {
            for (std::int64_t j = 0; j < width; j += panel) {
              float* sums = memory.sums + ((i0 - kept + i) * plan.columns_packed + j * panel);
              float* to = last ? memory.finished[turn] : sums;
              tile_block<Unit>(memory.a + i * steps * panel, memory.b + j * steps * panel, steps,
                               p0 == 0 ? nullptr : sums, to, [&]() HWY_ATTR { store_rows(rows_a_step); });
              store_rows(panel);
              if (!last) continue;
              before = {.i = i0 + i, .j = j0 + j, .rows = std::min(panel, height - i)};
              turn = 1 - turn;
            }
          }
        }
      }
    }
  }
  store_rows(panel);
  Unit::release();
  Unit::fence();
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
