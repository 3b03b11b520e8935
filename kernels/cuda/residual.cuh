// What the kernels of the residual branch share. Dropout's random words are made in registers, a Philox block for four
// elements.
#pragma once

#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/residual.h"

namespace choir::kernels {

/// What a kernel needs to know of a Dropout.
struct DropoutRule {
  std::uint32_t threshold = 0;  ///< keep an element if its random word is not below
  float scale = 1;              ///< 1 / (1 - p)
  std::uint64_t key = 0;
  std::int64_t first = 0;  ///< of the global tensor: the element that is element 0 here
  RowMap rows{};
  std::int64_t width_if_apart = 0;       ///< if elements that follow one another here do not in the global tensor
  const StepScalars* scalars = nullptr;  ///< null: keep everything

  DropoutRule(const Dropout& dropout, std::int64_t width) {
    if (dropout.p == 0) return;
    threshold = drop_below(dropout.p);
    scale = static_cast<float>(1 / (1 - dropout.p));
    key = dropout.key;
    first = dropout.rows.global_row(0) * width;
    rows = dropout.rows;
    if (!rows.in_order()) width_if_apart = width;
    scalars = dropout.scalars;
  }
};

/// The place of element i in the global tensor.
__device__ inline std::uint64_t global_element(const DropoutRule& rule, std::int64_t i) {
  if (rule.width_if_apart == 0) return static_cast<std::uint64_t>(rule.first + i);
  const std::int64_t row = i / rule.width_if_apart, column = i - row * rule.width_if_apart;
  return static_cast<std::uint64_t>(rule.rows.global_row(row) * rule.width_if_apart + column);
}

/// Multiplies elements [i, i + N) by 0 or 1 / (1 - p). They are of one row. If N > 1, i and the width are multiples
/// of 4. The product is rounded, whatever is added to it: each kernel gives the same bits.
template <int N>
__device__ void drop(const DropoutRule& rule, std::uint64_t step, std::int64_t i, cuda::Pack<N>& values) {
  const std::uint64_t index = global_element(rule, i);
  if constexpr (N == 1) {
    const std::uint32_t word = cuda::philox_word_of(rule.key, step, index);
    values.value[0] = __fmul_rn(values.value[0], word >= rule.threshold ? rule.scale : 0.0f);
  } else {
#pragma unroll
    for (int block = 0; block < N / 4; ++block) {
      const PhiloxBlock words = philox(rule.key, index / 4 + block, step);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& value = values.value[block * 4 + j];
        value = __fmul_rn(value, words[j] >= rule.threshold ? rule.scale : 0.0f);
      }
    }
  }
}

/// Elements [i, i + N) of y = x + dropout(delta + bias), from `column` on in their row. N divides the width.
template <int N, class T>
__device__ cuda::Pack<N> residual_sum(const ResidualForward<T>& args, const DropoutRule& rule, std::uint64_t step,
                                      std::int64_t i, std::int64_t column) {
  cuda::Pack<N> branch = cuda::load<N>(args.delta + i);
  if (args.bias) {
    const cuda::Pack<N> bias = cuda::load<N>(args.bias + column);
#pragma unroll
    for (int j = 0; j < N; ++j) branch.value[j] += bias.value[j];
  }
  if (rule.scalars) drop(rule, step, i, branch);
  if (args.x) {
    const cuda::Pack<N> x = cuda::load<N>(args.x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) branch.value[j] += x.value[j];
  }
  return branch;
}

}  // namespace choir::kernels
