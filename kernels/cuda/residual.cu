// The residual branch on the GPU.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/residual.cuh"

namespace choir::kernels {

/// N divides width.
template <class T, int N>
__global__ void residual_forward_kernel(ResidualForward<T> args, DropoutRule rule) {
  const std::uint64_t step = rule.scalars ? rule.scalars->step : 0;
  const std::int64_t count = args.rows * args.width;
  for (std::int64_t i = cuda::thread_of_grid() * N; i < count; i += cuda::threads_of_grid() * N) {
    cuda::store(residual_sum<N>(args, rule, step, i, i % args.width), args.y + i);
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
