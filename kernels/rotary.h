// Rotary position embedding, in place (Su et al. 2021, arXiv 2104.09864), in the half-split form of GPT-NeoX and Llama:
//
//   with i < E/2, angle a = position * base^(-2i/E):
//   x'[i]       = x[i] cos a - x[i + E/2] sin a
//   x'[i + E/2] = x[i + E/2] cos a + x[i] sin a
//
// On a grid the first half of the i turn by the row and the second by the column, each half with the frequencies of
// heads of half the width (Heo et al. 2024, arXiv 2403.13298).
//
// Backward is the rotation by -a (`inverse`).
#pragma once

#include <cstdint>

#include "kernels/grid.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

template <class T>
struct Rotary {
  T* x;                        ///< row r, head h, feature e at x[r * stride + h * head_width + e]
  const Accumulate<T>* table;  ///< [positions, head_width]: cos in the first half of each row, sin in the second
  std::int64_t rows;
  std::int64_t heads, head_width;  ///< head_width is even
  std::int64_t stride;
  RowMap map;                               ///< row r stands at map.position(r)
  const std::int32_t* positions = nullptr;  ///< [rows]: if given, row r stands at positions[r]
  bool inverse = false;
};

/// Fills table [positions, head_width], computed in double. On a grid head_width is a multiple of 4.
template <class A>
void rotary_table(A* table, std::int64_t positions, std::int64_t head_width, double base, const Grid& grid = {});

template <class T>
void rotary(Cpu, const Rotary<T>&);
template <class T>
void rotary(Cuda, const Rotary<T>&);

}  // namespace choir::kernels
