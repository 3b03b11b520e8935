// Sums and maxima over the threads of a block, in a fixed order: the bits repeat.
#pragma once

namespace choir::kernels::cuda {

struct Plus {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

/// The larger one; of a number and NaN, the number.
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// values[k] = values[k] of all threads, combined by `join`; in every thread. K values cost one pair of barriers.
///
/// Within a warp as a tree (all lanes exchange, so they end with equal bits), then the warps in ascending order. All
/// threads of the block must call it, and the block must consist of whole warps. It is a barrier of the block: what the
/// block did before happens before it returns.
template <class Join, class A, int K>
__device__ void block_reduce(A (&values)[K], Join join) {
  __shared__ A of_warp[K][32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int distance = 16; distance > 0; distance /= 2)
      values[k] = join(values[k], __shfl_xor_sync(0xffffffffu, values[k], distance));
    if (lane == 0) of_warp[k][warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    values[k] = of_warp[k][0];
    for (int w = 1; w < warps; ++w) values[k] = join(values[k], of_warp[k][w]);
  }
  __syncthreads();  // all threads must have read before a next call writes
}

template <class A>
__device__ A block_sum(A value) {
  A values[1] = {value};
  block_reduce(values, Plus{});
  return values[0];
}

}  // namespace choir::kernels::cuda
