// The merge of attention over two sets of keys on the GPU: a warp for a head of a query.
#include "kernels/attention_merge.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels {

/// N divides head_width.
template <class T, int N>
__global__ void attention_merge_kernel(AttentionMerge<T> args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warps = cuda::threads_of_grid() / 32, items = args.batch * args.queries * args.heads;
  for (std::int64_t item = cuda::thread_of_grid() / 32; item < items; item += warps) {
    const std::int64_t row = item / args.heads, head = item - row * args.heads;
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    const std::int64_t at = (batch * args.heads + head) * args.queries + query;
    const float a = args.total_lse[at], b = args.part_lse[at], largest = fmaxf(a, b);
    if (largest == -INFINITY) continue;  // no key so far: total stays 0
    const float sum = largest + logf(expf(a - largest) + expf(b - largest));
    const float of_total = expf(a - sum), of_part = expf(b - sum);
    const T* part = args.part + item * args.head_width;
    float* total = args.total + item * args.head_width;
    for (std::int64_t i = lane * N; i < args.head_width; i += 32 * N) {
      cuda::Pack<N> value = cuda::load<N>(total + i);
      const cuda::Pack<N> other = cuda::load<N>(part + i);
#pragma unroll
      for (int j = 0; j < N; ++j) value.value[j] = fmaf(value.value[j], of_total, other.value[j] * of_part);
      cuda::store(value, total + i);
    }
    __syncwarp();  // all lanes have read total_lse
    if (lane == 0) args.total_lse[at] = sum;
  }
}

template <class T>
void attention_merge(Cuda cuda, const AttentionMerge<T>& args) {
  cuda::with_pack_size<T>(args.head_width, {args.part, args.total}, [&]<int N>() {
    const std::int64_t warps = args.batch * args.queries * args.heads;
    attention_merge_kernel<T, N>
        <<<cuda::blocks_for_elements<1>(cuda, warps * 32), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("attention_merge");
}

template void attention_merge(Cuda, const AttentionMerge<float>&);
template void attention_merge(Cuda, const AttentionMerge<bf16>&);

}  // namespace choir::kernels
