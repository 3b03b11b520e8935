// Attention sinks on the GPU: a warp for a head of a query.
#include "kernels/attention_sink.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels {

/// N divides head_width.
template <class T, int N>
__global__ void attention_sink_kernel(AttentionSink<T> args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warps = cuda::threads_of_grid() / 32, items = args.batch * args.queries * args.heads;
  for (std::int64_t item = cuda::thread_of_grid() / 32; item < items; item += warps) {
    const std::int64_t row = item / args.heads, head = item - row * args.heads;
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    float* const place = args.lse + (batch * args.heads + head) * args.queries + query;
    const float lse = *place, logit = args.sinks[head], largest = fmaxf(lse, logit);
    const float sum = largest + logf(expf(lse - largest) + expf(logit - largest)), share = expf(lse - sum);
    T* const out = args.out + item * args.head_width;
    for (std::int64_t i = lane * N; i < args.head_width; i += 32 * N) {
      cuda::Pack<N> value = cuda::load<N>(out + i);
#pragma unroll
      for (int j = 0; j < N; ++j) value.value[j] *= share;
      cuda::store(value, out + i);
    }
    __syncwarp();  // all lanes have read lse
    if (lane == 0) *place = sum;
  }
}

template <class T>
void attention_sink(Cuda cuda, const AttentionSink<T>& args) {
  cuda::with_pack_size<T>(args.head_width, {args.out}, [&]<int N>() {
    const std::int64_t warps = args.batch * args.queries * args.heads;
    attention_sink_kernel<T, N>
        <<<cuda::blocks_for_elements<1>(cuda, warps * 32), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("attention_sink");
}

/// N divides head_width.
template <class T, int N>
__global__ void attention_sink_gradient_kernel(AttentionSinkGradient<T> args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warps = cuda::threads_of_grid() / 32, items = args.batch * args.queries * args.heads;
  for (std::int64_t item = cuda::thread_of_grid() / 32; item < items; item += warps) {
    const std::int64_t row = item / args.heads, head = item - row * args.heads;
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    float delta = 0;
    for (std::int64_t i = lane * N; i < args.head_width; i += 32 * N) {
      const cuda::Pack<N> out = cuda::load<N>(args.out + item * args.head_width + i);
      const cuda::Pack<N> dout = cuda::load<N>(args.dout + item * args.head_width + i);
#pragma unroll
      for (int j = 0; j < N; ++j) delta = fmaf(out.value[j], dout.value[j], delta);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, distance);
    const float lse = args.lse[(batch * args.heads + head) * args.queries + query];
    if (lane == 0) args.terms[item] = -expf(args.sinks[head] - lse) * delta;
  }
}

template <class T>
void attention_sink_gradient(Cuda cuda, const AttentionSinkGradient<T>& args) {
  cuda::with_pack_size<T>(args.head_width, {args.out, args.dout}, [&]<int N>() {
    const std::int64_t warps = args.batch * args.queries * args.heads;
    attention_sink_gradient_kernel<T, N>
        <<<cuda::blocks_for_elements<1>(cuda, warps * 32), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("attention_sink_gradient");
}

template void attention_sink(Cuda, const AttentionSink<float>&);
template void attention_sink(Cuda, const AttentionSink<bf16>&);
template void attention_sink_gradient(Cuda, const AttentionSinkGradient<float>&);
template void attention_sink_gradient(Cuda, const AttentionSinkGradient<bf16>&);

}  // namespace choir::kernels
