// The kernels for tiles on a double of the tile unit in plain C++: for tests on any processor.
//
// The double follows Intel's definition of the instructions, except that it does not take denormal numbers as 0. To use
// a tile between release() and configure() is a failure of the test.
#pragma once

#include <string>

#include "kernels/attention.h"
#include "kernels/matmul.h"

namespace choir::kernels::tests {

/// pack() of tile_pack.h with one of its packers.
using TilePacker = void (*)(const bf16* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, bf16* to);

/// The kernels on one unit.
struct TileKernels {
  std::string unit;
  void (*multiply_to_bf16)(Cpu, const Matmul<bf16, bf16>&);
  void (*multiply_to_f32)(Cpu, const Matmul<bf16, float>&);
  void (*attention_forward)(Cpu, const AttentionForward<bf16>&);
  void (*attention_backward)(Cpu, const AttentionBackward<bf16>&);

  void multiply(Cpu cpu, const Matmul<bf16, bf16>& args) const { multiply_to_bf16(cpu, args); }
  void multiply(Cpu cpu, const Matmul<bf16, float>& args) const { multiply_to_f32(cpu, args); }
};

/// On the double, for the instruction set that Highway has chosen.
TileKernels kernels_on_double();

struct TilePackers {
  TilePacker rows, rows_transposed, columns, columns_transposed;
};
TilePackers tile_packers();

}  // namespace choir::kernels::tests
