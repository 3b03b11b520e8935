// Matrix products in vectors of AVX-512, of f32 and of pairs of bf16: how they divide their work, and the memory of
// each thread. The kernel: vector_matmul_kernel.h.
//
// The depth is counted in steps: one element of f32, or a pair of bf16. A step of a matrix is a word of 32 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/carver.h"
#include "kernels/cpu/matmul_parts.h"
#include "kernels/cpu/parallel.h"
#include "kernels/matmul.h"

namespace choir::kernels::cpu {

inline constexpr std::int64_t block_rows = 8, block_columns = 48;  ///< of c, whose sums stay in registers
inline constexpr std::int64_t vector_columns = 16;                 ///< f32 in a vector

template <class In>
inline constexpr std::int64_t step_depth = static_cast<std::int64_t>(4 / sizeof(In));

/// How a product is divided. Depends on its sizes and on the number of threads.
///
/// The sizes were found by an experiment on Zen 5 (1 MB of L2 and 16 MB of L3 a core): a block of a should fill a third
/// of L2, and chunks of 384 to 2,048 steps are equally fast.
struct VectorMatmulPlan {
  static constexpr std::int64_t longest_chunk = 1152, packed_rows_bytes = 384 << 10, packed_columns_bytes = 1600 << 10;
  static constexpr std::int64_t rows_of_sums = 512;

  MatmulParts parts;
  std::int64_t steps_of_chunk, chunks;                  ///< of the depth
  std::int64_t rows_kept, rows_packed, columns_packed;  ///< multiples of the sizes of a block
  bool keeps_sums;  ///< between chunks, in memory of their own: c is bf16. Sums of f32 stay in c

  template <class In, class Out>
  VectorMatmulPlan(Cpu cpu, const Matmul<In, Out>& args) {
    const auto rounded = [](std::int64_t size, std::int64_t unit) { return (size + unit - 1) / unit * unit; };
    const std::int64_t steps = (args.k + step_depth<In> - 1) / step_depth<In>;
    chunks = (steps + longest_chunk - 1) / longest_chunk;
    steps_of_chunk = rounded((steps + chunks - 1) / chunks, vector_columns);
    chunks = (steps + steps_of_chunk - 1) / steps_of_chunk;

    parts = MatmulParts::of(
        num_parts(cpu, rounded(args.m, block_rows) / block_rows * (rounded(args.n, block_columns) / block_columns),
                  steps * block_rows / 4),
        args.m, args.n);
    const std::int64_t rows = MatmulParts::part(args.m, block_rows, parts.rows, 0).end;
    const std::int64_t columns = MatmulParts::part(args.n, block_columns, parts.columns, 0).end;
    const auto fitting = [&](std::int64_t size, std::int64_t unit,
                             std::int64_t bytes) {  // equal blocks of so many bytes
      const std::int64_t most = std::max(unit, bytes / (4 * steps_of_chunk) / unit * unit);
      const std::int64_t blocks = (size + most - 1) / most;
      return rounded((size + blocks - 1) / blocks, unit);
    };
    keeps_sums = std::is_same_v<Out, bf16> && chunks > 1;
    rows_kept = rounded(keeps_sums ? std::min(rows, rows_of_sums) : rows, block_rows);
    rows_packed = fitting(rows_kept, block_rows, packed_rows_bytes);
    columns_packed = fitting(columns, block_columns, packed_columns_bytes);
  }
};

/// The workspace of one part.
struct VectorMatmulMemory {
  std::uint32_t* a;  ///< [rows_packed / 8][steps of the chunk][8]
  std::uint32_t* b;  ///< [columns_packed / 48][steps of the chunk][48]
  float* sums;       ///< [rows_kept, columns_packed] if the plan keeps them; else empty
  std::int64_t bytes;

  VectorMatmulMemory(const VectorMatmulPlan& plan, void* start) {
    Carver carver(start);
    a = carver.take<std::uint32_t>(plan.rows_packed * plan.steps_of_chunk);
    b = carver.take<std::uint32_t>(plan.columns_packed * plan.steps_of_chunk);
    sums = carver.take<float>(plan.keeps_sums ? plan.rows_kept * plan.columns_packed : 0);
    bytes = carver.bytes();
  }
};

/// A power of two: memory is kept by its size, so that products of many shapes share it.
template <class In, class Out>
std::int64_t vector_matmul_workspace_bytes(Cpu cpu, const Matmul<In, Out>& args) {
  const VectorMatmulPlan plan(cpu, args);
  const std::int64_t bytes = plan.parts.count() * VectorMatmulMemory(plan, nullptr).bytes;
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(bytes)));
}

/// Computes one part; see vector_matmul_part().
template <class In, class Out>
using VectorMatmulPart = void (*)(const Matmul<In, Out>&, const VectorMatmulPlan&, int index, void* workspace);

/// The product, not in batches, by `compute` for each part. m, n and k are at least 1.
template <class In, class Out>
void vector_matmul(Cpu cpu, const Matmul<In, Out>& args, VectorMatmulPart<In, Out> compute) {
  const VectorMatmulPlan plan(cpu, args);
  const std::int64_t bytes = VectorMatmulMemory(plan, nullptr).bytes;
  for_each_part(plan.parts.count(), plan.parts.count(), 1, [&](Part part) {
    for (std::int64_t i = part.begin; i < part.end; ++i)
      compute(args, plan, static_cast<int>(i), static_cast<std::byte*>(args.workspace) + i * bytes);
  });
}

/// The same in vectors of this processor. Requires has_pairs().
template <class In, class Out>
void vector_matmul(Cpu cpu, const Matmul<In, Out>& args);

}  // namespace choir::kernels::cpu
