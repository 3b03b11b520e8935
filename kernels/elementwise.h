// The simplest passes over memory: fill, cast, add, copy of strided rows, random start values.
#pragma once

#include <cstdint>

#include "kernels/range.h"
#include "kernels/types.h"

namespace choir::kernels {

template <class T>
void fill(Cpu, T* x, std::int64_t count, float value);
template <class T>
void fill(Cuda, T* x, std::int64_t count, float value);

/// x[i] = 0 in each of the ranges: one launch, however many they are. On a GPU x is f32.
template <class T>
struct ZeroRanges {
  T* x;
  const Range* ranges;
  std::int64_t num_ranges, elements;  ///< of all ranges
};
template <class T>
void zero_ranges(Cpu, const ZeroRanges<T>&);
template <class T>
void zero_ranges(Cuda, const ZeroRanges<T>&);

/// y[i] = To(x[i]); x and y may be the same memory only if the types are the same.
template <class From, class To>
void cast(Cpu, const From* x, To* y, std::int64_t count);
template <class From, class To>
void cast(Cuda, const From* x, To* y, std::int64_t count);

/// `rows` rows of `width` elements; strides in elements.
template <class From, class To>
struct RowPass {
  const From* x;
  To* y;
  std::int64_t rows, width, x_stride, y_stride;
};

/// y += x
template <class T>
void accumulate(Cpu, const RowPass<T, Accumulate<T>>&);
template <class T>
void accumulate(Cuda, const RowPass<T, Accumulate<T>>&);

/// y = T(x)
template <class T>
void narrow(Cpu, const RowPass<Accumulate<T>, T>&);
template <class T>
void narrow(Cuda, const RowPass<Accumulate<T>, T>&);

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
