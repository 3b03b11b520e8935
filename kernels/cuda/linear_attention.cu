// Linear attention on the GPU: the states before all chunks by the recurrence, a thread for each element of a state;
// then a block of threads for each chunk. Everything is computed in f32, in a fixed order.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/linear_attention_chunk.cuh"
#include "kernels/linear_attention.h"

namespace choir::kernels {
namespace {

/// `states` [state][chunks + 1][E * E]: before each chunk, and after the last one.
template <class T>
__global__ void linear_states_kernel(LinearAttentionShape s, const T* k, const T* v, const float* log_decay,
                                     const float* given, float* states, float* last_state, float* total) {
  const std::int64_t elements = s.head_width * s.head_width, chunks = s.chunks();
  for (std::int64_t i = cuda::thread_of_grid(); i < s.states() * elements; i += cuda::threads_of_grid()) {
    const std::int64_t state = i / elements, element = i - state * elements;
    const std::int64_t e = element / s.head_width, f = element - e * s.head_width;
    const Head head(s, state);
    float* to = states + state * (chunks + 1) * elements + element;
    float value = given ? given[i] : 0, sum = 0;
    for (std::int64_t t = 0; t < s.length; ++t) {
      if (t % chunk == 0) to[t / chunk * elements] = value;
      const float g = log_decay[head.decay(s, t)], of_k = read(k + head.at(s, t, s.k_stride) + e);
      const float of_v = read(v + head.at(s, t, s.v_stride) + f);
      sum += g;
      value = s.reverse ? expf(g) * fmaf(of_k, of_v, value) : fmaf(expf(g), value, of_k * of_v);
    }
    to[chunks * elements] = value;
    if (last_state) last_state[i] = value;
    if (total && element == 0) total[state] = sum;
  }
}

/// `dstates` likewise: the gradients of these states.
template <class T>
__global__ void linear_dstates_kernel(LinearAttentionShape s, const T* q, const T* dout, const float* log_decay,
                                      const float* dlast, float* dstates, float* dstate) {
  const std::int64_t elements = s.head_width * s.head_width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  for (std::int64_t i = cuda::thread_of_grid(); i < s.states() * elements; i += cuda::threads_of_grid()) {
    const std::int64_t state = i / elements, element = i - state * elements;
    const std::int64_t e = element / s.head_width, f = element - e * s.head_width;
    const Head head(s, state);
    float* to = dstates + state * (chunks + 1) * elements + element;
    float value = dlast ? dlast[i] : 0;
    to[chunks * elements] = value;
    for (std::int64_t t = s.length - 1; t >= 0; --t) {
      const float decay = expf(log_decay[head.decay(s, t)]);
      if (s.reverse) value *= decay;
      value =
          fmaf(scale * read(q + head.at(s, t, s.q_stride) + e), read(dout + head.at(s, t, s.out_stride) + f), value);
      if (!s.reverse) value *= decay;
      if (t % chunk == 0) to[t / chunk * elements] = value;
    }
    if (dstate) dstate[i] = value;
  }
}

template <class T>
__global__ void linear_forward_kernel(LinearAttentionForward<T> args, const float* states) {
  __shared__ ChunkDecays decays;
  __shared__ float scores[chunk][chunk + 1];
  const LinearAttentionShape& s = args.shape;
  const std::int64_t elements = s.head_width * s.head_width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t item = blockIdx.x; item < s.states() * chunks; item += gridDim.x) {
    const std::int64_t state = item / chunks, begin = (item - state * chunks) * chunk;
    const int count = static_cast<int>(s.length - begin < chunk ? s.length - begin : chunk);
    const Head head(s, state);
    decays.read_from(s, head, args.log_decay, begin, count);
    for (int at = thread; at < count * count; at += threads) {
      const int i = at / count, j = at - i * count;
      if (j > i) continue;
      scores[i][j] = scale * decays.between(i, j) *
                     dot(args.q + head.at(s, begin + i, s.q_stride), 1, args.k + head.at(s, begin + j, s.k_stride), 1,
                         s.head_width);
    }
    __syncthreads();
    const float* before = states + (item + state) * elements;  // chunks + 1 for each state
    for (std::int64_t at = thread; at < count * s.head_width; at += threads) {
      const int i = static_cast<int>(at / s.head_width);
      const std::int64_t f = at - i * s.head_width;
      const float of_state = dot(args.q + head.at(s, begin + i, s.q_stride), 1, before + f, s.head_width, s.head_width);
      const float of_chunk = dot(&scores[i][0], 1, args.v + head.at(s, begin, s.v_stride) + f, s.v_stride, i + 1);
      write(fmaf(scale * decays.from_state[i], of_state, of_chunk), s.reverse,
            args.out + head.at(s, begin + i, s.out_stride) + f);
    }
    __syncthreads();  // before the next chunk's are written
  }
}

template <class T>
__global__ void linear_backward_kernel(LinearAttentionBackward<T> args, const float* states, const float* dstates) {
  __shared__ ChunkDecays decays;
  __shared__ float scores[chunk][chunk + 1], dscores[chunk][chunk + 1], dsums[chunk];
  const LinearAttentionShape& s = args.shape;
  const std::int64_t elements = s.head_width * s.head_width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t item = blockIdx.x; item < s.states() * chunks; item += gridDim.x) {
    const std::int64_t state = item / chunks, begin = (item - state * chunks) * chunk;
    const int count = static_cast<int>(s.length - begin < chunk ? s.length - begin : chunk);
    const Head head(s, state);
    const T* const q = args.q + head.at(s, begin, s.q_stride);
    const T* const k = args.k + head.at(s, begin, s.k_stride);
    const T* const v = args.v + head.at(s, begin, s.v_stride);
    const T* const dout = args.dout + head.at(s, begin, s.out_stride);
    decays.read_from(s, head, args.log_decay, begin, count);
    for (int at = thread; at < count * count; at += threads) {
      const int i = at / count, j = at - i * count;
      if (j > i) continue;
      const float decay = scale * decays.between(i, j);
      scores[i][j] = decay * dot(q + i * s.q_stride, 1, k + j * s.k_stride, 1, s.head_width);
      dscores[i][j] = decay * dot(dout + i * s.out_stride, 1, v + j * s.v_stride, 1, s.head_width);
    }
    const float* const before = states + (item + state) * elements;
    const float* const dafter = dstates + (item + state + 1) * elements;
    float of_last = 0;
    for (std::int64_t at = thread; at < elements; at += threads)
      of_last = fmaf(before[elements + at], dafter[at], of_last);
    of_last = cuda::block_sum(of_last);  // a barrier: scores are written

    // A warp for dq and dk of a token, so that it can add up q . dq - k . dk.
    for (int i = thread / 32; i < count; i += threads / 32) {
      float sum = 0;
      for (std::int64_t e = thread % 32; e < s.head_width; e += 32) {
        const float of_state = dot(dout + i * s.out_stride, 1, before + e * s.head_width, 1, s.head_width);
        const float dq = fmaf(scale * decays.from_state[i], of_state, dot(&dscores[i][0], 1, k + e, s.k_stride, i + 1));
        const float of_next = dot(v + i * s.v_stride, 1, dafter + e * s.head_width, 1, s.head_width);
        const float dk = fmaf(decays.to_state[i], of_next,
                              dot(&dscores[i][i], chunk + 1, q + i * s.q_stride + e, s.q_stride, count - i));
        write(dq, s.reverse, args.dq + head.at(s, begin + i, s.q_stride) + e);
        write(dk, s.reverse, args.dk + head.at(s, begin + i, s.k_stride) + e);
        sum += read(q + i * s.q_stride + e) * dq - read(k + i * s.k_stride + e) * dk;
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (thread % 32 == 0) dsums[i] = sum;
    }
    for (std::int64_t at = thread; at < count * s.head_width; at += threads) {
      const int j = static_cast<int>(at / s.head_width);
      const std::int64_t f = at - j * s.head_width;
      const float of_next = dot(k + j * s.k_stride, 1, dafter + f, s.head_width, s.head_width);
      write(fmaf(decays.to_state[j], of_next,
                 dot(&scores[j][j], chunk + 1, dout + j * s.out_stride + f, s.out_stride, count - j)),
            s.reverse, args.dv + head.at(s, begin + j, s.v_stride) + f);
    }
    __syncthreads();
    if (thread == 0) write_decay_gradients(s, head, begin, count, dsums, of_last, args.log_decay, args.dlog_decay);
    __syncthreads();
  }
}

__global__ void carry_state_kernel(CarryState<float> args) {
  for (std::int64_t i = cuda::thread_of_grid(); i < args.states * args.elements; i += cuda::threads_of_grid())
    args.state[i] = fmaf(expf(args.total[i / args.elements]), args.state[i], args.next[i]);
}

std::int64_t bytes_of_states(const LinearAttentionShape& s) {
  return s.states() * (s.chunks() + 1) * s.head_width * s.head_width * static_cast<std::int64_t>(sizeof(float));
}

int blocks_for_states(Cuda cuda, const LinearAttentionShape& s) {
  return cuda::blocks_for_elements<1>(cuda, s.states() * s.head_width * s.head_width);
}

}  // namespace

template <class T>
std::int64_t linear_attention_forward_workspace_bytes(Cuda, const LinearAttentionShape& s) {
  return bytes_of_states(s);
}

template <class T>
std::int64_t linear_attention_backward_workspace_bytes(Cuda, const LinearAttentionShape& s) {
  return 2 * bytes_of_states(s);
}

template <class T>
void linear_attention_forward(Cuda cuda, const LinearAttentionForward<T>& given) {
  const LinearAttentionForward<T> args = in_order(given);
  const LinearAttentionShape& s = args.shape;
  float* states = static_cast<float*>(args.workspace);
  linear_states_kernel<T><<<blocks_for_states(cuda, s), cuda::threads_per_block, 0, cuda.stream>>>(
      s, args.k, args.v, args.log_decay, args.state, states, args.last_state, args.total);
  cuda::check_launch("linear_states");
  if (!args.out) return;
  linear_forward_kernel<T>
      <<<cuda::blocks_for(cuda, s.states() * s.chunks()), cuda::threads_per_block, 0, cuda.stream>>>(args, states);
  cuda::check_launch("linear_forward");
}

template <class T>
void linear_attention_backward(Cuda cuda, const LinearAttentionBackward<T>& given) {
  const LinearAttentionBackward<T> args = in_order(given);
  const LinearAttentionShape& s = args.shape;
  float* states = static_cast<float*>(args.workspace);
  float* dstates = states + bytes_of_states(s) / static_cast<std::int64_t>(sizeof(float));
  linear_dstates_kernel<T><<<blocks_for_states(cuda, s), cuda::threads_per_block, 0, cuda.stream>>>(
      s, args.q, args.dout, args.log_decay, args.dlast, dstates, args.dstate);
  cuda::check_launch("linear_dstates");
  if (!args.dq) return;
  linear_states_kernel<T><<<blocks_for_states(cuda, s), cuda::threads_per_block, 0, cuda.stream>>>(
      s, args.k, args.v, args.log_decay, args.state, states, nullptr, nullptr);
  cuda::check_launch("linear_states");
  linear_backward_kernel<T>
      <<<cuda::blocks_for(cuda, s.states() * s.chunks()), cuda::threads_per_block, 0, cuda.stream>>>(args, states,
                                                                                                     dstates);
  cuda::check_launch("linear_backward");
}

template <class A>
void carry_state(Cuda cuda, const CarryState<A>& args) {
  carry_state_kernel<<<cuda::blocks_for_elements<1>(cuda, args.states * args.elements), cuda::threads_per_block, 0,
                       cuda.stream>>>(args);
  cuda::check_launch("carry_state");
}

template std::int64_t linear_attention_forward_workspace_bytes<float>(Cuda, const LinearAttentionShape&);
template std::int64_t linear_attention_forward_workspace_bytes<bf16>(Cuda, const LinearAttentionShape&);
template std::int64_t linear_attention_backward_workspace_bytes<float>(Cuda, const LinearAttentionShape&);
template std::int64_t linear_attention_backward_workspace_bytes<bf16>(Cuda, const LinearAttentionShape&);
template void linear_attention_forward(Cuda, const LinearAttentionForward<float>&);
template void linear_attention_forward(Cuda, const LinearAttentionForward<bf16>&);
template void linear_attention_backward(Cuda, const LinearAttentionBackward<float>&);
template void linear_attention_backward(Cuda, const LinearAttentionBackward<bf16>&);
template void carry_state(Cuda, const CarryState<float>&);

}  // namespace choir::kernels
