// The kernels for tiles and vectors on doubles of these units in plain C++: for tests on any processor.
//
// The doubles follow Intel's definition of the instructions, except that they do not take denormal numbers as 0. To use
// a tile between release() and configure() is a failure of the test.
#pragma once

#include <string>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/matmul.h"

namespace choir::kernels::tests {

/// pack() of tile_pack.h with one of its packers.
template <class T>
using TilePacker = void (*)(const T* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, T* to);

/// Products on one unit.
template <class In, class Out>
struct ProductKernel {
  std::string unit;
  void (*multiply)(Cpu, const Matmul<In, Out>&) = nullptr;
  std::int64_t (*workspace_bytes)(Cpu, const Matmul<In, Out>&) = nullptr;
};
struct ProductKernels {
  ProductKernel<bf16, bf16> bf16_to_bf16;
  ProductKernel<bf16, float> bf16_to_f32;
  ProductKernel<float, float> f32;  ///< of vectors only
};
template <class In, class Out>
ProductKernel<In, Out> product_of(const ProductKernels& kernels) {
  if constexpr (std::is_same_v<In, float>)
    return kernels.f32;
  else if constexpr (std::is_same_v<Out, float>)
    return kernels.bf16_to_f32;
  else
    return kernels.bf16_to_bf16;
}

/// Attention on one unit.
template <class T>
struct AttentionKernels {
  std::string name;
  CpuUnit unit = {};
  void (*forward)(Cpu, const AttentionForward<T>&) = nullptr;
  void (*backward)(Cpu, const AttentionBackward<T>&) = nullptr;
};

/// On doubles, for the instruction set that Highway has chosen; null pointers for one without vectors.
ProductKernels products_on_tile_double();
ProductKernels products_on_vector_double();
AttentionKernels<bf16> attention_on_tile_double();
template <class T>
AttentionKernels<T> attention_on_vector_double();

template <class T>
struct TilePackers {
  TilePacker<T> rows, rows_transposed, columns, columns_transposed;
};
template <class T>
TilePackers<T> tile_packers();

}  // namespace choir::kernels::tests
