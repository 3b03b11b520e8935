// Rotary position embedding on the GPU: a thread rotates N pairs of one head.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/rotary.h"

namespace choir::kernels {

/// N divides half a head.
template <class T, int N>
__global__ void rotary_kernel(Rotary<T> args) {
  const std::int64_t half = args.head_width / 2, packs_of_head = half / N, packs = args.heads * packs_of_head;
  for (std::int64_t index = cuda::thread_of_grid(); index < args.rows * packs; index += cuda::threads_of_grid()) {
    const std::int64_t row = index / packs, pack = index % packs;
    const std::int64_t head = pack / packs_of_head, i = pack % packs_of_head * N;
    const std::int64_t position = args.positions ? args.positions[row] : args.map.position(row);
    const float* cosine = args.table + position * args.head_width + i;
    T* low = args.x + row * args.stride + head * args.head_width + i;
    const cuda::Pack<N> c = cuda::load<N>(cosine), s = cuda::load<N>(cosine + half);
    cuda::Pack<N> a = cuda::load<N>(low), b = cuda::load<N>(low + half);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float sine = args.inverse ? -s.value[j] : s.value[j], first = a.value[j];
      a.value[j] = fmaf(-b.value[j], sine, first * c.value[j]);
      b.value[j] = fmaf(first, sine, b.value[j] * c.value[j]);
    }
    cuda::store(a, low);
    cuda::store(b, low + half);
  }
}

template <class T>
void rotary(Cuda cuda, const Rotary<T>& args) {
  const std::int64_t half = args.head_width / 2;
  const std::int64_t common = half % cuda::pack_size<T> == 0 ? args.stride : 1;
  cuda::with_pack_size<T>(common, {args.x, args.table}, [&]<int N>() {
    rotary_kernel<T, N><<<cuda::blocks_for_elements<N>(cuda, args.rows * args.heads * half), cuda::threads_per_block, 0,
                          cuda.stream>>>(args);
  });
  cuda::check_launch("rotary");
}

template void rotary(Cuda, const Rotary<float>&);
template void rotary(Cuda, const Rotary<bf16>&);

}  // namespace choir::kernels
