// Linear attention by the delta rule on the GPU: the values and the states before all chunks by the recurrence, a warp
// for each column of a state, which no other column changes; then a block of threads for each chunk. Everything is
// computed in f32, in a fixed order.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/linear_attention_chunk.cuh"
#include "kernels/delta_attention.h"

namespace choir::kernels {
namespace {

/// What the steps of a call pass on. Rows of factors are [batch * length, heads], read as in_order() has those of
/// gates.
struct DeltaMemory {
  float *query_factor, *key_factor;   // to unit length
  float *values, *dvalues, *scratch;  // u, w and room, [state][length][E]
  float *states, *dstates;            // [state][chunks + 1][E * E]
  std::int64_t bytes;

  DeltaMemory(const LinearAttentionShape& s, bool backward, void* start) {
    std::int64_t elements = 0;
    const auto take = [&](std::int64_t count) {
      float* here = start ? static_cast<float*>(start) + elements : nullptr;
      elements += count;
      return here;
    };
    const std::int64_t of_tokens = s.states() * s.length * s.head_width;
    const std::int64_t of_states = s.states() * (s.chunks() + 1) * s.head_width * s.head_width;
    query_factor = take(s.states() * s.length);
    key_factor = take(s.states() * s.length);
    to_first(s, s.heads, query_factor);
    to_first(s, s.heads, key_factor);
    values = take(of_tokens);
    states = take(of_states);
    dvalues = take(backward ? of_tokens : 0);
    scratch = take(backward ? of_tokens : 0);
    dstates = take(backward ? of_states : 0);
    bytes = elements * static_cast<std::int64_t>(sizeof(float));
  }
};

__device__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

/// A warp for each head of each token.
template <class T>
__global__ void delta_factors_kernel(LinearAttentionShape s, const T* x, std::int64_t stride, float* factors) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (std::int64_t i = cuda::thread_of_grid() / 32; i < s.states() * s.length; i += cuda::threads_of_grid() / 32) {
    const std::int64_t state = i / s.length, t = i - state * s.length;
    const Head head(s, state);
    const T* row = x + head.at(s, t, stride);
    float sum = 0;
    for (std::int64_t e = lane; e < s.head_width; e += 32) sum = fmaf(read(row + e), read(row + e), sum);
    sum = warp_sum(sum);
    if (lane == 0) factors[head.decay(s, t)] = 1 / sqrtf(sum + static_cast<float>(delta_norm_epsilon));
  }
}

/// `given` null: 0, or the unit matrix if `unit`. `v` null: 0.
template <class T>
__global__ void delta_values_kernel(LinearAttentionShape s, const T* k, const T* v, const float* log_decay,
                                    const float* log_rate, const float* given, bool unit, DeltaMemory memory,
                                    float* last_state) {
  extern __shared__ float columns[];  // a column for each warp
  const std::int64_t width = s.head_width, elements = width * width, chunks = s.chunks();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* column = columns + static_cast<int>(threadIdx.x) / 32 * width;
  for (std::int64_t i = cuda::thread_of_grid() / 32; i < s.states() * width; i += cuda::threads_of_grid() / 32) {
    const std::int64_t state = i / width, f = i - state * width;
    const Head head(s, state);
    float* to = memory.states + state * (chunks + 1) * elements + f;
    const auto store_column = [&](float* first) {
      for (std::int64_t e = lane; e < width; e += 32) first[e * width] = column[e];
    };
    for (std::int64_t e = lane; e < width; e += 32)
      column[e] = given ? given[state * elements + e * width + f] : unit && e == f ? 1.0f : 0.0f;
    for (std::int64_t t = 0; t < s.length; ++t) {
      if (t % chunk == 0) store_column(to + t / chunk * elements);
      const std::int64_t gate = head.decay(s, t);
      const float decay = expf(log_decay[gate]), rate = expf(log_rate[gate]), factor = memory.key_factor[gate];
      const T* key = k + head.at(s, t, s.k_stride);
      float stood = 0;
      for (std::int64_t e = lane; e < width; e += 32) stood = fmaf(factor * read(key + e), column[e], stood);
      const float given_value = v ? read(v + head.at(s, t, s.v_stride) + f) : 0.0f;
      const float before = s.reverse ? 1.0f : decay, after = s.reverse ? decay : 1.0f;  // of the decay
      const float value = rate * (given_value - before * warp_sum(stood));
      for (std::int64_t e = lane; e < width; e += 32)
        column[e] = after * fmaf(factor * read(key + e), value, before * column[e]);
      if (lane == 0) memory.values[(state * s.length + t) * width + f] = value;
    }
    store_column(to + chunks * elements);
    if (last_state) store_column(last_state + state * elements + f);
  }
}

/// w and the gradients of the states, from the last token to the first.
template <class T>
__global__ void delta_gradients_kernel(LinearAttentionBackward<T> args, const float* log_rate, DeltaMemory memory) {
  extern __shared__ float columns[];
  const LinearAttentionShape& s = args.shape;
  const std::int64_t width = s.head_width, elements = width * width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* column = columns + static_cast<int>(threadIdx.x) / 32 * width;
  for (std::int64_t i = cuda::thread_of_grid() / 32; i < s.states() * width; i += cuda::threads_of_grid() / 32) {
    const std::int64_t state = i / width, f = i - state * width;
    const Head head(s, state);
    float* to = memory.dstates + state * (chunks + 1) * elements + f;
    const auto store_column = [&](float* first) {
      for (std::int64_t e = lane; e < width; e += 32) first[e * width] = column[e];
    };
    for (std::int64_t e = lane; e < width; e += 32)
      column[e] = args.dlast ? args.dlast[state * elements + e * width + f] : 0.0f;
    store_column(to + chunks * elements);
    for (std::int64_t t = s.length - 1; t >= 0; --t) {
      const std::int64_t gate = head.decay(s, t);
      const float decay = expf(args.log_decay[gate]), rate = expf(log_rate[gate]);
      const float of_key = memory.key_factor[gate];
      const float of_query =
          scale * memory.query_factor[gate] * read(args.dout + head.at(s, t, s.out_stride) + f);  // times q: scale q do
      const T *query = args.q + head.at(s, t, s.q_stride), *key = args.k + head.at(s, t, s.k_stride);
      const float before = s.reverse ? decay : 1.0f, after = s.reverse ? 1.0f : decay;  // of w
      const float read_after = s.reverse ? 0.0f : of_query, read_before = s.reverse ? of_query : 0.0f;
      float sum = 0;
      for (std::int64_t e = lane; e < width; e += 32) {
        column[e] = fmaf(read_after, read(query + e), before * column[e]);
        sum = fmaf(of_key * read(key + e), column[e], sum);
      }
      const float dvalue = warp_sum(sum), of_read = -rate * dvalue * of_key;
      for (std::int64_t e = lane; e < width; e += 32) {
        const float of_state = after * fmaf(of_read, read(key + e), column[e]);
        column[e] = fmaf(read_before, read(query + e), of_state);
      }
      if (t % chunk == 0) store_column(to + t / chunk * elements);
      if (lane == 0) memory.dvalues[(state * s.length + t) * width + f] = dvalue;
      if (lane == 0 && args.dv) write(rate * dvalue, s.reverse, args.dv + head.at(s, t, s.v_stride) + f);
    }
    if (args.dstate) store_column(args.dstate + state * elements + f);
  }
}

/// The factors of a chunk, in shared memory.
struct ChunkFactors {
  float query[chunk], key[chunk], rate[chunk];

  /// By the whole block; a barrier.
  __device__ void read_from(const LinearAttentionShape& s, const Head& head, const DeltaMemory& memory,
                            const float* log_rate, std::int64_t begin, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const std::int64_t gate = head.decay(s, begin + i);
      query[i] = memory.query_factor[gate];
      key[i] = memory.key_factor[gate];
      rate[i] = expf(log_rate[gate]);
    }
    __syncthreads();
  }
};

template <class T>
__global__ void delta_forward_kernel(LinearAttentionForward<T> args, const float* log_rate, DeltaMemory memory) {
  __shared__ ChunkDecays decays;
  __shared__ ChunkFactors factors;
  __shared__ float scores[chunk][chunk + 1];
  const LinearAttentionShape& s = args.shape;
  const std::int64_t width = s.head_width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t item = blockIdx.x; item < s.states() * chunks; item += gridDim.x) {
    const std::int64_t state = item / chunks, begin = (item - state * chunks) * chunk;
    const int count = static_cast<int>(s.length - begin < chunk ? s.length - begin : chunk);
    const Head head(s, state);
    const T *const q = args.q + head.at(s, begin, s.q_stride), *const k = args.k + head.at(s, begin, s.k_stride);
    const float* const values = memory.values + (state * s.length + begin) * width;
    decays.read_from(s, head, args.log_decay, begin, count);
    factors.read_from(s, head, memory, log_rate, begin, count);
    for (int at = thread; at < count * count; at += threads) {
      const int i = at / count, j = at - i * count;
      if (j > i) continue;
      scores[i][j] = scale * decays.between(i, j) * factors.query[i] * factors.key[j] *
                     dot(q + i * s.q_stride, 1, k + j * s.k_stride, 1, width);
    }
    __syncthreads();
    const float* before = memory.states + (item + state) * width * width;  // chunks + 1 for each state
    for (std::int64_t at = thread; at < count * width; at += threads) {
      const int i = static_cast<int>(at / width);
      const std::int64_t f = at - i * width;
      const float of_state = dot(q + i * s.q_stride, 1, before + f, width, width);
      const float of_chunk = dot(&scores[i][0], 1, values + f, width, i + 1);
      write(fmaf(scale * factors.query[i] * decays.from_state[i], of_state, of_chunk), s.reverse,
            args.out + head.at(s, begin + i, s.out_stride) + f);
    }
    __syncthreads();  // before the next chunk's are written
  }
}

template <class T>
__global__ void delta_backward_kernel(LinearAttentionBackward<T> args, const float* log_rate, float* dlog_rate,
                                      DeltaMemory memory) {
  __shared__ ChunkDecays decays;
  __shared__ ChunkFactors factors;
  __shared__ float of_out[chunk][chunk + 1], of_reads[chunk][chunk + 1], dsums[chunk];
  const LinearAttentionShape& s = args.shape;
  const std::int64_t width = s.head_width, elements = width * width, chunks = s.chunks();
  const float scale = static_cast<float>(s.scale);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = thread % 32;
  for (std::int64_t item = blockIdx.x; item < s.states() * chunks; item += gridDim.x) {
    const std::int64_t state = item / chunks, begin = (item - state * chunks) * chunk;
    const int count = static_cast<int>(s.length - begin < chunk ? s.length - begin : chunk);
    const Head head(s, state);
    const T* const q = args.q + head.at(s, begin, s.q_stride);
    const T* const k = args.k + head.at(s, begin, s.k_stride);
    const T* const dout = args.dout + head.at(s, begin, s.out_stride);
    const std::int64_t of_chunk = (state * s.length + begin) * width;
    const float *const values = memory.values + of_chunk, *const dvalues = memory.dvalues + of_chunk;
    decays.read_from(s, head, args.log_decay, begin, count);
    factors.read_from(s, head, memory, log_rate, begin, count);
    for (int at = thread; at < count * count; at += threads) {  // (do_i . u_j) D_ij, (z_i . u_j) D_ij
      const int i = at / count, j = at - i * count;
      if (j > i) continue;
      const float decay = decays.between(i, j);
      of_out[i][j] = decay * dot(dout + i * s.out_stride, 1, values + j * width, 1, width);
      of_reads[i][j] =
          j < i ? -factors.rate[i] * decay * dot(dvalues + i * width, 1, values + j * width, 1, width) : 0.0f;
    }
    const float* const before = memory.states + (item + state) * elements;
    const float* const dafter = memory.dstates + (item + state + 1) * elements;
    float of_last = 0;
    for (std::int64_t at = thread; at < elements; at += threads)
      of_last = fmaf(before[elements + at], dafter[at], of_last);
    of_last = cuda::block_sum(of_last);  // a barrier: of_out and of_reads are written

    // A warp for each token: gradients of q and k at unit length, from which those of q and k follow.
    for (int i = thread / 32; i < count; i += threads / 32) {
      float* const row = memory.scratch + of_chunk + i * width;
      const auto write_gradient = [&](const T* x, float factor, float along, T* to) {
        for (std::int64_t e = lane; e < width; e += 32)
          write(factor * (row[e] - factor * read(x + e) * along), s.reverse, to + e);
      };
      float along = 0;
      for (std::int64_t e = lane; e < width; e += 32) {
        float sum = decays.from_state[i] * dot(dout + i * s.out_stride, 1, before + e * width, 1, width);
        for (int j = 0; j <= i; ++j) sum = fmaf(of_out[i][j] * factors.key[j], read(k + j * s.k_stride + e), sum);
        row[e] = scale * sum;
        along = fmaf(factors.query[i] * read(q + i * s.q_stride + e), row[e], along);
      }
      along = warp_sum(along);
      float dsum = along;
      write_gradient(q + i * s.q_stride, factors.query[i], along, args.dq + head.at(s, begin + i, s.q_stride));

      float of_read = 0, of_write = 0, of_rate = 0;
      for (std::int64_t e = lane; e < width; e += 32) {
        float dread =
            -factors.rate[i] * decays.from_state[i] * dot(dvalues + i * width, 1, before + e * width, 1, width);
        for (int j = 0; j < i; ++j) dread = fmaf(of_reads[i][j] * factors.key[j], read(k + j * s.k_stride + e), dread);
        float dwrite = decays.to_state[i] * dot(values + i * width, 1, dafter + e * width, 1, width);
        for (int m = i; m < count; ++m) {
          dwrite = fmaf(scale * of_out[m][i] * factors.query[m], read(q + m * s.q_stride + e), dwrite);
          dwrite = fmaf(of_reads[m][i] * factors.key[m], read(k + m * s.k_stride + e), dwrite);
        }
        row[e] = dread + dwrite;
        const float key = factors.key[i] * read(k + i * s.k_stride + e);
        of_read = fmaf(key, dread, of_read);
        of_write = fmaf(key, dwrite, of_write);
        of_rate = fmaf(dvalues[i * width + e], values[i * width + e], of_rate);
      }
      of_read = warp_sum(of_read);
      of_write = warp_sum(of_write);
      of_rate = warp_sum(of_rate);
      write_gradient(k + i * s.k_stride, factors.key[i], of_read + of_write,
                     args.dk + head.at(s, begin + i, s.k_stride));
      dsum += of_read - of_write;
      if (lane == 0) {
        dsums[i] = dsum;
        const std::int64_t at = head.decay(s, begin + i);
        dlog_rate[at] = s.reverse ? dlog_rate[at] + of_rate : of_rate;
      }
    }
    __syncthreads();
    if (thread == 0) write_decay_gradients(s, head, begin, count, dsums, of_last, args.log_decay, args.dlog_decay);
    __syncthreads();
  }
}

__global__ void carry_through_kernel(CarryThrough<float> args) {
  const std::int64_t width = args.width, elements = width * width;
  for (std::int64_t i = cuda::thread_of_grid(); i < args.states * elements; i += cuda::threads_of_grid()) {
    const std::int64_t state = i / elements, element = i - state * elements;
    const std::int64_t e = element / width, f = element - e * width;
    const float* transition = args.transition + state * elements + (args.transposed ? e : e * width);
    args.out[i] =
        args.next[i] + dot(transition, args.transposed ? width : 1, args.state + state * elements + f, width, width);
  }
}

template <class T>
void find_factors(Cuda cuda, const LinearAttentionShape& s, const T* x, std::int64_t stride, float* factors) {
  delta_factors_kernel<T>
      <<<cuda::blocks_for_elements<1>(cuda, 32 * s.states() * s.length), cuda::threads_per_block, 0, cuda.stream>>>(
          s, x, stride, factors);
  cuda::check_launch("delta_factors");
}

int blocks_for_columns(Cuda cuda, const LinearAttentionShape& s) {
  return cuda::blocks_for_elements<1>(cuda, 32 * s.states() * s.head_width);
}
std::size_t bytes_of_columns(const LinearAttentionShape& s) {
  return static_cast<std::size_t>(cuda::threads_per_block / 32 * s.head_width) * sizeof(float);
}

template <class T>
void find_values(Cuda cuda, const LinearAttentionShape& s, const T* k, const T* v, const float* log_decay,
                 const float* log_rate, const float* given, bool unit, const DeltaMemory& memory, float* last_state) {
  delta_values_kernel<T><<<blocks_for_columns(cuda, s), cuda::threads_per_block, bytes_of_columns(s), cuda.stream>>>(
      s, k, v, log_decay, log_rate, given, unit, memory, last_state);
  cuda::check_launch("delta_values");
}

}  // namespace

template <class T>
std::int64_t delta_attention_forward_workspace_bytes(Cuda, const LinearAttentionShape& s) {
  return DeltaMemory(s, false, nullptr).bytes;
}

template <class T>
std::int64_t delta_attention_backward_workspace_bytes(Cuda, const LinearAttentionShape& s) {
  return DeltaMemory(s, true, nullptr).bytes;
}

template <class T>
void delta_attention_forward(Cuda cuda, const DeltaAttentionForward<T>& given) {
  const DeltaAttentionForward<T> args = in_order(given);
  const LinearAttentionForward<T>& a = args.linear;
  const DeltaMemory memory(a.shape, false, a.workspace);
  find_factors(cuda, a.shape, a.k, a.shape.k_stride, memory.key_factor);
  if (args.transition)  // what the tokens make of the unit matrix if they add nothing
    find_values<T>(cuda, a.shape, a.k, nullptr, a.log_decay, args.log_rate, nullptr, true, memory, args.transition);
  find_values(cuda, a.shape, a.k, a.v, a.log_decay, args.log_rate, a.state, false, memory, a.last_state);
  if (!a.out) return;
  find_factors(cuda, a.shape, a.q, a.shape.q_stride, memory.query_factor);
  delta_forward_kernel<T>
      <<<cuda::blocks_for(cuda, a.shape.states() * a.shape.chunks()), cuda::threads_per_block, 0, cuda.stream>>>(
          a, args.log_rate, memory);
  cuda::check_launch("delta_forward");
}

template <class T>
void delta_attention_backward(Cuda cuda, const DeltaAttentionBackward<T>& given) {
  const DeltaAttentionBackward<T> args = in_order(given);
  const LinearAttentionBackward<T>& a = args.linear;
  const LinearAttentionShape& s = a.shape;
  const DeltaMemory memory(s, true, a.workspace);
  find_factors(cuda, s, a.q, s.q_stride, memory.query_factor);
  find_factors(cuda, s, a.k, s.k_stride, memory.key_factor);
  delta_gradients_kernel<T><<<blocks_for_columns(cuda, s), cuda::threads_per_block, bytes_of_columns(s), cuda.stream>>>(
      a, args.log_rate, memory);
  cuda::check_launch("delta_gradients");
  if (!a.dq) return;
  find_values(cuda, s, a.k, a.v, a.log_decay, args.log_rate, a.state, false, memory, nullptr);
  delta_backward_kernel<T>
      <<<cuda::blocks_for(cuda, s.states() * s.chunks()), cuda::threads_per_block, 0, cuda.stream>>>(
          a, args.log_rate, args.dlog_rate, memory);
  cuda::check_launch("delta_backward");
}

template <class A>
void carry_through(Cuda cuda, const CarryThrough<A>& args) {
  carry_through_kernel<<<cuda::blocks_for_elements<1>(cuda, args.states * args.width * args.width),
                         cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("carry_through");
}

template std::int64_t delta_attention_forward_workspace_bytes<float>(Cuda, const LinearAttentionShape&);
template std::int64_t delta_attention_forward_workspace_bytes<bf16>(Cuda, const LinearAttentionShape&);
template std::int64_t delta_attention_backward_workspace_bytes<float>(Cuda, const LinearAttentionShape&);
template std::int64_t delta_attention_backward_workspace_bytes<bf16>(Cuda, const LinearAttentionShape&);
template void delta_attention_forward(Cuda, const DeltaAttentionForward<float>&);
template void delta_attention_forward(Cuda, const DeltaAttentionForward<bf16>&);
template void delta_attention_backward(Cuda, const DeltaAttentionBackward<float>&);
template void delta_attention_backward(Cuda, const DeltaAttentionBackward<bf16>&);
template void carry_through(Cuda, const CarryThrough<float>&);

}  // namespace choir::kernels
