// Sums: of columns (bias gradients), and of squares over ranges of a buffer (gradient norm).
#pragma once

#include <cstdint>

#include "kernels/range.h"
#include "kernels/types.h"

namespace choir::kernels {

/// sum[j] += sum_r x[r, j]
template <class T>
struct ColumnSum {
  const T* x;          ///< [rows, width], rows `stride` apart
  Accumulate<T>* sum;  ///< [width]
  std::int64_t rows, width, stride;
  void* workspace = nullptr;  ///< column_sum_workspace_bytes(), 64-byte aligned
};

/// *sum = sum over the ranges of x[i]^2, partial sums in double, in an order that does not depend on the threads.
struct SquaredNorm {
  const float* x;
  const Range* ranges;
  std::int64_t num_ranges;
  double* sum;
  void* workspace = nullptr;  ///< squared_norm_workspace_bytes(), 64-byte aligned
};

template <class T>
std::int64_t column_sum_workspace_bytes(Cpu, std::int64_t rows, std::int64_t width);
template <class T>
std::int64_t column_sum_workspace_bytes(Cuda, std::int64_t rows, std::int64_t width);
template <class T>
void column_sum(Cpu, const ColumnSum<T>&);
template <class T>
void column_sum(Cuda, const ColumnSum<T>&);
/// Pointers are not read.
std::int64_t squared_norm_workspace_bytes(Cpu, std::int64_t num_ranges);
std::int64_t squared_norm_workspace_bytes(Cuda, std::int64_t num_ranges);
void squared_norm(Cpu, const SquaredNorm&);
void squared_norm(Cuda, const SquaredNorm&);

}  // namespace choir::kernels
