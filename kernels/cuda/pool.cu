// Means over positions on the GPU. No atomics: one thread adds all rows of one element, in ascending order, which gives
// the same bits as the CPU kernel.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/pool.h"

namespace choir::kernels {

/// N divides width.
template <class T, int N>
__global__ void pool_forward_kernel(PoolForward<T> args) {
  const PoolShape& s = args.shape;
  const std::int64_t packs = s.width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < s.map.sequences * packs; i += cuda::threads_of_grid()) {
    const std::int64_t sequence = i / packs, column = i % packs * N;
    cuda::Pack<N> total{};
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const Run rows = s.rows_of(sequence, run);
#pragma unroll 4
      for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const cuda::Pack<N> term = cuda::load<N>(args.x + row * s.width + column);
#pragma unroll
        for (int j = 0; j < N; ++j) total.value[j] += term.value[j];
      }
    }
    const auto factor = s.factor<float>(sequence);
#pragma unroll
    for (int j = 0; j < N; ++j) total.value[j] *= factor;
    cuda::store(total, args.means + sequence * s.width + column);
  }
}

template <class T>
void pool_forward(Cuda cuda, const PoolForward<T>& args) {
  const std::int64_t width = args.shape.width;
  cuda::with_pack_size<T>(width, {args.x, args.means}, [&]<int N>() {
    pool_forward_kernel<T, N><<<cuda::blocks_for_elements<N>(cuda, args.shape.map.sequences * width),
                                cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("pool_forward");
}

/// N divides width.
template <class T, int N>
__global__ void pool_backward_kernel(PoolBackward<T> args) {
  const PoolShape& s = args.shape;
  const std::int64_t packs = s.width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < s.rows * packs; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / packs, column = i % packs * N;
    const RowMap::Place at = s.map.place(row);
    cuda::Pack<N> dx{};
    if (s.is_read(row, at)) {
      const auto factor = s.factor<float>(at.sequence);
      dx = cuda::load<N>(args.dmeans + at.sequence * s.width + column);
#pragma unroll
      for (int j = 0; j < N; ++j) dx.value[j] *= factor;
    }
    cuda::store(dx, args.dx + row * s.width + column);
  }
}

template <class T>
void pool_backward(Cuda cuda, const PoolBackward<T>& args) {
  const std::int64_t width = args.shape.width;
  cuda::with_pack_size<T>(width, {args.dmeans, args.dx}, [&]<int N>() {
    pool_backward_kernel<T, N>
        <<<cuda::blocks_for_elements<N>(cuda, args.shape.rows * width), cuda::threads_per_block, 0, cuda.stream>>>(
            args);
  });
  cuda::check_launch("pool_backward");
}

template void pool_forward(Cuda, const PoolForward<float>&);
template void pool_forward(Cuda, const PoolForward<bf16>&);
template void pool_backward(Cuda, const PoolBackward<float>&);
template void pool_backward(Cuda, const PoolBackward<bf16>&);

}  // namespace choir::kernels
