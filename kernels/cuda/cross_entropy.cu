// Softmax cross-entropy on the GPU: the three passes of kernels/cross_entropy.h, a block per row. A row is a slice of
// the vocabulary, 10^4 to 10^5 logits: each pass is bound by memory bandwidth.
#include <limits>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels {

template <int N>
__global__ void __launch_bounds__(cuda::threads_per_block) cross_entropy_max_kernel(CrossEntropyMax<float> args) {
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const float* logits = args.logits + row * args.stride;
    float largest[1] = {-std::numeric_limits<float>::infinity()};
    cuda::for_each_pack_of_row<N>(args.num_tokens, [&]<int M>(std::int64_t i) {
      const cuda::Pack<M> values = cuda::load<M>(logits + i);
#pragma unroll
      for (int j = 0; j < M; ++j) largest[0] = fmaxf(largest[0], values.value[j]);
    });
    cuda::block_reduce(largest, cuda::Largest{});
    if (threadIdx.x == 0) args.max[row] = largest[0];
  }
}

/// The column of a row's target in this slice, or -1 if the row is padding or the target is in another slice.
__device__ inline std::int64_t column_of(std::int32_t target, std::int64_t first_token, std::int64_t num_tokens) {
  const std::int64_t token = target - first_token;
  return target >= 0 && token >= 0 && token < num_tokens ? token : -1;
}

template <int N>
__global__ void __launch_bounds__(cuda::threads_per_block) cross_entropy_sum_kernel(CrossEntropySum<float> args) {
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    float* logits = args.logits + row * args.stride;
    if (threadIdx.x == 0) {
      const std::int64_t column = column_of(args.targets[row], args.first_token, args.num_tokens);
      args.target[row] = column < 0 ? 0.0f : logits[column];
    }
    __syncthreads();  // before the logit is overwritten
    const float max = args.max[row];
    float sum = 0;
    cuda::for_each_pack_of_row<N>(args.num_tokens, [&]<int M>(std::int64_t i) {
      cuda::Pack<M> values = cuda::load<M>(logits + i);
#pragma unroll
      for (int j = 0; j < M; ++j) {
        values.value[j] = expf(values.value[j] - max);
        sum += values.value[j];
      }
      cuda::store(values, logits + i);
    });
    sum = cuda::block_sum(sum);
    if (threadIdx.x == 0) args.sum[row] = sum;
  }
}

// One block: all threads compute the logarithms, and one thread adds the rows in ascending order.
template <class T>
__global__ void __launch_bounds__(cuda::threads_per_block) cross_entropy_loss_kernel(CrossEntropyGradient<T> args) {
  __shared__ double losses[cuda::threads_per_block];
  double total = *args.loss_sum;
  int right = 0;
  for (std::int64_t begin = 0; begin < args.rows; begin += cuda::threads_per_block) {
    const std::int64_t row = begin + threadIdx.x;
    double loss = 0;
    bool is_right = false;
    if (row < args.rows && args.targets[row] >= 0) {
      is_right = args.target[row] == args.max[row];
      loss = log(static_cast<double>(args.sum[row])) + static_cast<double>(args.max[row]) -
             static_cast<double>(args.target[row]);
    }
    losses[threadIdx.x] = loss;
    right += __syncthreads_count(is_right);
    if (threadIdx.x == 0) {
#pragma unroll 8
      for (int i = 0; i < cuda::threads_per_block; ++i) total += losses[i];
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  *args.loss_sum = total;
  if (args.right) *args.right += right;
}

/// N divides stride. The padding of a row, from num_tokens on, may share a pack with logits; it is not read.
template <class T, int N>
__global__ void __launch_bounds__(cuda::threads_per_block) cross_entropy_gradient_kernel(CrossEntropyGradient<T> args) {
  const auto scale = static_cast<float>(args.scale);
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const float* exps = args.exps + row * args.stride;
    T* dlogits = args.dlogits + row * args.stride;
    const std::int64_t num_tokens = args.targets[row] < 0 ? 0 : args.num_tokens;
    const std::int64_t target = column_of(args.targets[row], args.first_token, args.num_tokens);
    const float factor = num_tokens == 0 ? 0.0f : scale / args.sum[row];
    for (std::int64_t i = std::int64_t{threadIdx.x} * N; i < args.stride; i += std::int64_t{blockDim.x} * N) {
      cuda::Pack<N> values{};
      if (i + N <= num_tokens) {
        values = cuda::load<N>(exps + i);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j)
          if (i + j < num_tokens) values.value[j] = exps[i + j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) values.value[j] = values.value[j] * factor - (i + j == target ? scale : 0.0f);
      cuda::store(values, dlogits + i);
    }
  }
}

template <>
void cross_entropy_max(Cuda cuda, const CrossEntropyMax<float>& args) {
  cuda::with_pack_size<float>(args.stride, {args.logits}, [&]<int N>() {
    cross_entropy_max_kernel<N>
        <<<cuda::blocks_for(cuda, args.rows), cuda::threads_for_row(args.num_tokens / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("cross_entropy_max");
}

template <>
void cross_entropy_sum(Cuda cuda, const CrossEntropySum<float>& args) {
  cuda::with_pack_size<float>(args.stride, {args.logits}, [&]<int N>() {
    cross_entropy_sum_kernel<N>
        <<<cuda::blocks_for(cuda, args.rows), cuda::threads_for_row(args.num_tokens / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("cross_entropy_sum");
}

template <class T>
void cross_entropy_gradient(Cuda cuda, const CrossEntropyGradient<T>& args) {
  cross_entropy_loss_kernel<<<1, cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("cross_entropy_gradient");
  if (!args.dlogits) return;
  cuda::with_pack_size<T>(args.stride, {args.exps, args.dlogits}, [&]<int N>() {
    cross_entropy_gradient_kernel<T, N>
        <<<cuda::blocks_for(cuda, args.rows), cuda::threads_for_row(args.stride / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("cross_entropy_gradient");
}

template void cross_entropy_gradient(Cuda, const CrossEntropyGradient<float>&);
template void cross_entropy_gradient(Cuda, const CrossEntropyGradient<bf16>&);

}  // namespace choir::kernels
