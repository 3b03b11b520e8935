// The residual branch on the GPU. Dropout's random words are made in registers, a Philox block for four elements.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/philox.h"
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
/// of 4.
template <int N>
__device__ void drop(const DropoutRule& rule, std::uint64_t step, std::int64_t i, cuda::Pack<N>& values) {
  const std::uint64_t index = global_element(rule, i);
  if constexpr (N == 1) {
    const PhiloxBlock words = philox(rule.key, index / 4, step);
    const std::uint32_t low = index % 2 == 0 ? words[0] : words[1], high = index % 2 == 0 ? words[2] : words[3];
    const std::uint32_t word = index % 4 < 2 ? low : high;
    values.value[0] *= word >= rule.threshold ? rule.scale : 0.0f;
  } else {
#pragma unroll
    for (int block = 0; block < N / 4; ++block) {
      const PhiloxBlock words = philox(rule.key, index / 4 + block, step);
#pragma unroll
      for (int j = 0; j < 4; ++j) values.value[block * 4 + j] *= words[j] >= rule.threshold ? rule.scale : 0.0f;
    }
  }
}

/// N divides width.
template <class T, int N>
__global__ void residual_forward_kernel(ResidualForward<T> args, DropoutRule rule) {
  const std::uint64_t step = rule.scalars ? rule.scalars->step : 0;
  const std::int64_t count = args.rows * args.width;
  for (std::int64_t i = cuda::thread_of_grid() * N; i < count; i += cuda::threads_of_grid() * N) {
    cuda::Pack<N> branch = cuda::load<N>(args.delta + i);
    if (args.bias) {
      const cuda::Pack<N> bias = cuda::load<N>(args.bias + i % args.width);
#pragma unroll
      for (int j = 0; j < N; ++j) branch.value[j] += bias.value[j];
    }
    if (rule.scalars) drop(rule, step, i, branch);
    if (args.x) {
      const cuda::Pack<N> x = cuda::load<N>(args.x + i);
#pragma unroll
      for (int j = 0; j < N; ++j) branch.value[j] += x.value[j];
    }
    cuda::store(branch, args.y + i);
  }
}

/// N divides width.
template <class T, int N>
__global__ void residual_backward_kernel(ResidualBackward<T> args, DropoutRule rule) {
  const std::uint64_t step = rule.scalars ? rule.scalars->step : 0;
  const std::int64_t count = args.rows * args.width;
  for (std::int64_t i = cuda::thread_of_grid() * N; i < count; i += cuda::threads_of_grid() * N) {
    cuda::Pack<N> slope = cuda::load<N>(args.dy + i);
    if (rule.scalars) drop(rule, step, i, slope);
    cuda::store(slope, args.ddelta + i);
  }
}

template <class T>
void residual_forward(Cuda cuda, const ResidualForward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.x, args.delta, args.bias, args.y}, [&]<int N>() {
    residual_forward_kernel<T, N>
        <<<cuda::blocks_for_elements<N>(cuda, args.rows * args.width), cuda::threads_per_block, 0, cuda.stream>>>(
            args, DropoutRule(args.dropout, args.width));
  });
  cuda::check_launch("residual_forward");
}

template <class T>
void residual_backward(Cuda cuda, const ResidualBackward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.dy, args.ddelta}, [&]<int N>() {
    residual_backward_kernel<T, N>
        <<<cuda::blocks_for_elements<N>(cuda, args.rows * args.width), cuda::threads_per_block, 0, cuda.stream>>>(
            args, DropoutRule(args.dropout, args.width));
  });
  cuda::check_launch("residual_backward");
}

template void residual_forward(Cuda, const ResidualForward<float>&);
template void residual_forward(Cuda, const ResidualForward<bf16>&);
template void residual_backward(Cuda, const ResidualBackward<float>&);
template void residual_backward(Cuda, const ResidualBackward<bf16>&);

}  // namespace choir::kernels
