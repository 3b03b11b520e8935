// The kernels for tiles, and for vectors of pairs, on doubles of these units in plain C++: for tests on any processor.
//
// The doubles follow Intel's definition of the instructions, except that they do not take denormal numbers as 0. To use
// a tile between release() and configure() is a failure of the test.
#pragma once

#include <string>

#include "kernels/attention.h"
#include "kernels/matmul.h"

namespace choir::kernels::tests {

/// pack() of tile_pack.h with one of its packers.
using TilePacker = void (*)(const bf16* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, bf16* to);

/// Products on one unit.
struct TileKernels {
  std::string unit;
  void (*multiply_to_bf16)(Cpu, const Matmul<bf16, bf16>&);
  void (*multiply_to_f32)(Cpu, const Matmul<bf16, float>&);

  void multiply(Cpu cpu, const Matmul<bf16, bf16>& args) const { multiply_to_bf16(cpu, args); }
  void multiply(Cpu cpu, const Matmul<bf16, float>& args) const { multiply_to_f32(cpu, args); }
};

/// Attention on one unit.
struct AttentionKernels {
  std::string name;
  Bf16Unit unit;
  void (*forward)(Cpu, const AttentionForward<bf16>&);
  void (*backward)(Cpu, const AttentionBackward<bf16>&);
};

/// On doubles, for the instruction set that Highway has chosen.
TileKernels products_on_double();
AttentionKernels attention_on_tile_double();
AttentionKernels attention_on_pair_double();

struct TilePackers {
  TilePacker rows, rows_transposed, columns, columns_transposed;
};
TilePackers tile_packers();

}  // namespace choir::kernels::tests
