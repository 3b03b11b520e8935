// The simplest passes over memory: fill, cast, add, copy of strided rows, random start values.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

template <class T>
void fill(Cpu, T* x, std::int64_t count, float value);
template <class T>
void fill(Cuda, T* x, std::int64_t count, float value);

/// y[i] = To(x[i]); x and y may be the same memory only if the types are the same.
template <class From, class To>
void cast(Cpu, const From* x, To* y, std::int64_t count);
template <class From, class To>
void cast(Cuda, const From* x, To* y, std::int64_t count);

/// y[i] = a[i] + b[i]; y may be a or b.
template <class T>
void add(Cpu, const T* a, const T* b, T* y, std::int64_t count);
void add(Cuda, const float* a, const float* b, float* y, std::int64_t count);

/// Copies `rows` rows of `row_bytes` bytes; strides in bytes. The areas do not overlap.
void copy_rows(Cpu, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride, std::int64_t rows,
               std::int64_t row_bytes);
void copy_rows(Cuda, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride, std::int64_t rows,
               std::int64_t row_bytes);

/// x[i] = mean + deviation * z_i, z the standard normals of Box-Muller on philox(key, (first + i) / 4, stream):
/// a function of the global index, whatever part of the tensor is held here. Host only: all devices start from its
/// bits.
void random_normal(Cpu, float* x, std::int64_t first, std::int64_t count, std::uint64_t key, std::uint64_t stream,
                   float mean, float deviation);

}  // namespace choir::kernels
