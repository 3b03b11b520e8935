// How products on tiles (tile_matmul_kernel.h) divide their work: the part, the blocks and the memory of each thread.
//
// The sizes were found by an experiment on Emerald Rapids (2 MiB of L2 a core): with b in 0.8 to 1.5 MB products were
// equally fast, and depths over 1536 were 20 % faster in chunks of 768 to 1536.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/carver.h"
#include "kernels/cpu/matmul_parts.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/tile_panel.h"
#include "kernels/matmul.h"

namespace choir::kernels::cpu {

/// How a product is divided. Depends on its sizes and on the number of threads.
struct TileMatmulPlan {
  static constexpr std::int64_t packed_columns_bytes = 1 << 20, packed_rows_bytes = 1 << 18;
  static constexpr std::int64_t longest_chunk = 1536, usual_chunk = 1024, rows_of_sums = 512;

  MatmulParts parts;
  std::int64_t depth_of_chunk, chunks;
  std::int64_t rows_kept, rows_packed, columns_packed;  ///< multiples of 32

  TileMatmulPlan(Cpu cpu, std::int64_t m, std::int64_t n, std::int64_t k) {
    chunks = k <= longest_chunk ? 1 : (k + usual_chunk - 1) / usual_chunk;
    depth_of_chunk = panel * num_panels((k + chunks - 1) / chunks);
    chunks = (k + depth_of_chunk - 1) / depth_of_chunk;

    parts = MatmulParts::of(num_parts(cpu, num_panels(m) * num_panels(n), k * panel / 4), m, n);
    const std::int64_t panel_bytes = depth_of_chunk * panel * 2;
    const auto fitting = [&](std::int64_t panels, std::int64_t bytes) {  // equal groups of at most so many bytes
      const std::int64_t most = std::max<std::int64_t>(1, bytes / panel_bytes), groups = (panels + most - 1) / most;
      return panel * std::max<std::int64_t>(1, (panels + groups - 1) / std::max<std::int64_t>(1, groups));
    };
    const std::int64_t rows = num_panels(MatmulParts::part(m, panel, parts.rows, 0).end);
    const std::int64_t columns = num_panels(MatmulParts::part(n, panel, parts.columns, 0).end);
    rows_kept = chunks == 1 ? rows * panel : std::min(rows * panel, rows_of_sums);
    rows_packed = std::min(rows_kept, fitting(rows, packed_rows_bytes));
    columns_packed = fitting(columns, packed_columns_bytes);
  }
};

/// The workspace of one part. Sums of 32 x 32 are laid out as in tile_block.h.
struct TileMatmulMemory {
  bf16 *a, *b;         ///< packed panels
  float* sums;         ///< [rows_kept / 32][columns_packed / 32][32 * 32] between chunks; empty if there is one chunk
  float* finished[2];  ///< [32 * 32]: of the block that runs, and of the one before it
  std::int64_t bytes;

  TileMatmulMemory(const TileMatmulPlan& plan, void* start) {
    Carver carver(start);
    a = carver.take<bf16>(plan.rows_packed * plan.depth_of_chunk);
    b = carver.take<bf16>(plan.columns_packed * plan.depth_of_chunk);
    sums = carver.take<float>(plan.chunks == 1 ? 0 : plan.rows_kept * plan.columns_packed);
    for (float*& block : finished) block = carver.take<float>(panel * panel);
    bytes = carver.bytes();
  }
};

template <class Out>
std::int64_t tile_matmul_workspace_bytes(Cpu cpu, const Matmul<bf16, Out>& args) {
  const TileMatmulPlan plan(cpu, args.m, args.n, args.k);
  return plan.parts.count() * TileMatmulMemory(plan, nullptr).bytes;
}

/// Computes one part; see tile_matmul_part().
template <class Out>
using TileMatmulPart = void (*)(const Matmul<bf16, Out>&, const TileMatmulPlan&, int index, void* workspace);

/// The product, not in batches, by `compute` for each part. m, n and k are at least 1.
template <class Out>
void tile_matmul(Cpu cpu, const Matmul<bf16, Out>& args, TileMatmulPart<Out> compute) {
  const TileMatmulPlan plan(cpu, args.m, args.n, args.k);
  const std::int64_t bytes = TileMatmulMemory(plan, nullptr).bytes;
  for_each_part(plan.parts.count(), plan.parts.count(), 1, [&](Part part) {
    for (std::int64_t i = part.begin; i < part.end; ++i)
      compute(args, plan, static_cast<int>(i), static_cast<std::byte*>(args.workspace) + i * bytes);
  });
}

/// The same on the tile unit of this processor. Requires has_tiles().
template <class Out>
void tile_matmul(Cpu cpu, const Matmul<bf16, Out>& args);

/// True if `multiply` gives the exact products of some small integers, transposed in every way.
bool is_exact(void (*multiply)(Cpu, const Matmul<bf16, float>&));

}  // namespace choir::kernels::cpu
