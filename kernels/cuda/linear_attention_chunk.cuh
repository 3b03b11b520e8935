// A chunk of linear attention on the GPU: where its elements are, and the decays between its tokens.
#pragma once

#include "kernels/cuda/vector.cuh"
#include "kernels/linear_attention.h"

namespace choir::kernels {
namespace {

constexpr int chunk = linear_attention_chunk;

template <class T>
__device__ float read(const T* from) {
  return cuda::load<1>(from).value[0];
}

template <class T>
__device__ void write(float value, bool adds, T* to) {
  cuda::store(cuda::Pack<1>{{adds ? read(to) + value : value}}, to);
}

/// Offsets of one head of one sequence.
struct Head {
  std::int64_t sequence, head;
  __device__ Head(const LinearAttentionShape& s, std::int64_t state)
      : sequence(state / s.heads), head(state - sequence * s.heads) {}
  /// Of feature 0 of token t.
  __device__ std::int64_t at(const LinearAttentionShape& s, std::int64_t t, std::int64_t stride) const {
    return s.row(sequence, t) * stride + head * s.head_width;
  }
  __device__ std::int64_t decay(const LinearAttentionShape& s, std::int64_t t) const {
    return s.row(sequence, t) * s.decay_stride() + head;
  }
};

/// The decays of a chunk, in shared memory.
struct ChunkDecays {
  float sums[chunk], from_state[chunk], to_state[chunk];  // c, exp(c), exp(c_last - c)
  int first[chunk];                                       // the first token of the document; -1: before the chunk
  float total;                                            // c_last and the first token of what goes on after the chunk
  int first_of_last;
  bool reverse;

  /// By the whole block; a barrier.
  __device__ void read_from(const LinearAttentionShape& s, const Head& head, const float* log_decay, std::int64_t begin,
                            int count) {
    if (threadIdx.x == 0) {
      float sum = 0;
      int of_document = -1;
      for (int i = 0; i < count; ++i) {
        const float g = log_decay[head.decay(s, begin + i)];
        const float next = g == -INFINITY ? 0 : sum + g;
        const int of_next = g != -INFINITY ? of_document : s.reverse ? i + 1 : i;
        sums[i] = s.reverse ? sum : next;
        first[i] = s.reverse ? of_document : of_next;
        sum = next;
        of_document = of_next;
      }
      total = sum;
      first_of_last = of_document;
      reverse = s.reverse;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      from_state[i] = first[i] < 0 ? expf(sums[i]) : 0;
      to_state[i] = i >= first_of_last ? expf(total - sums[i]) : 0;
    }
    __syncthreads();
  }
  /// D of token i and an earlier one or, but in reverse, itself.
  __device__ float between(int i, int j) const {
    return j >= first[i] && !(reverse && i == j) ? expf(sums[i] - sums[j]) : 0;
  }
};

/// dg of a chunk, by one thread: of dc in shared memory, and of_last = <S', dS'>.
__device__ inline void write_decay_gradients(const LinearAttentionShape& s, const Head& head, std::int64_t begin,
                                             int count, const float* dsums, float of_last, const float* log_decay,
                                             float* dlog_decay) {
  float sum = of_last;
  for (int i = count - 1; i >= 0; --i) {
    const std::int64_t at = head.decay(s, begin + i);
    if (!s.reverse) sum += dsums[i];
    if (log_decay[at] == -INFINITY) sum = 0;
    dlog_decay[at] = s.reverse ? dlog_decay[at] + sum : sum;
    if (s.reverse) sum += dsums[i];
  }
}

/// sum over n of a[n * a_step] b[n * b_step]
template <class A, class B>
__device__ float dot(const A* a, std::int64_t a_step, const B* b, std::int64_t b_step, std::int64_t count) {
  float sum = 0;
  for (std::int64_t n = 0; n < count; ++n) sum = fmaf(read(a + n * a_step), read(b + n * b_step), sum);
  return sum;
}

}  // namespace
}  // namespace choir::kernels
