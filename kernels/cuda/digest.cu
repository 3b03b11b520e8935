// One block for each range.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/digest.h"

namespace choir::kernels {

__device__ inline std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline std::uint32_t bits_of(bf16 x) { return x.bits; }

template <class T>
__global__ void __launch_bounds__(cuda::threads_per_block) digest_kernel(Digest<T> args) {
  const Range range = args.ranges[blockIdx.x];
  std::uint64_t sum = 0;
  for (std::int64_t i = range.begin + threadIdx.x; i < range.end; i += cuda::threads_per_block)
    sum += mix(bits_of(args.x[i]), static_cast<std::uint64_t>(i));
  sum = cuda::block_sum(static_cast<unsigned long long>(sum));
  if (threadIdx.x == 0) args.digests[blockIdx.x] = sum;
}

template <class T>
void digest(Cuda cuda, const Digest<T>& args) {
  if (args.num_ranges == 0) return;
  digest_kernel<<<static_cast<unsigned>(args.num_ranges), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("digest");
}

template void digest(Cuda, const Digest<float>&);
template void digest(Cuda, const Digest<bf16>&);

}  // namespace choir::kernels
