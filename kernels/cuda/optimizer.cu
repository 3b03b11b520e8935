// The optimizer updates on the GPU, one kernel for all parameters. The blocks divide the state, not the segments: a
// model has hundreds of segments of a few elements and a few of millions. The host does not read the segments.
#include <algorithm>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/optimizer.h"

namespace choir::kernels {

constexpr int tile_size = cuda::threads_per_block * 4 * 4;  ///< elements for which a block finds segments at once

/// The number of segments that end at or before `element`.
__device__ inline std::int64_t segments_before(const OptimizerSegment* segments, std::int64_t count,
                                               std::int64_t element) {
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (segments[middle].end <= element)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/// True if four elements at a time can be accessed at every fourth element of the state.
template <class M>
__device__ bool is_aligned(const OptimizerSegment& segment, const M* state, const M* other_state) {
  const auto of_element_0 = [](const auto* address, std::int64_t element) {  // 4 bytes a multiple of 16, 2 of 8
    return (reinterpret_cast<std::uintptr_t>(address) - element * sizeof(*address)) * (4 / sizeof(*address));
  };
  std::uintptr_t bits = of_element_0(segment.weight, segment.begin) | of_element_0(segment.gradient, segment.begin) |
                        of_element_0(state, 0) | of_element_0(other_state, 0);
  if (segment.value) bits |= of_element_0(segment.value, segment.begin);
  return bits % 16 == 0;
}

/// The grid passes over all elements of all segments: body<4>(segment, i) for elements [i, i + 4) of the state if they
/// are all of one segment and aligned, body<1> for others.
template <class M, class Body>
__device__ void for_each_pack_of_segments(const OptimizerSegment* segments, std::int64_t num_segments, const M* state,
                                          const M* other_state, const Body& body) {
  const std::int64_t end = num_segments == 0 ? 0 : segments[num_segments - 1].end;
  for (std::int64_t tile = std::int64_t{blockIdx.x} * tile_size; tile < end;
       tile += std::int64_t{gridDim.x} * tile_size) {
    const std::int64_t tile_end = min(tile + tile_size, end);
    for (std::int64_t s = segments_before(segments, num_segments, tile); s < num_segments; ++s) {
      const OptimizerSegment segment = segments[s];
      if (segment.begin >= tile_end) break;
      const std::int64_t first = max(segment.begin, tile), last = min(segment.end, tile_end);
      const bool aligned = is_aligned(segment, state, other_state);
#pragma unroll 1
      for (std::int64_t i = first / 4 * 4 + threadIdx.x * 4; i < last; i += cuda::threads_per_block * 4) {
        if (aligned && i >= first && i + 4 <= last) {
          body.template operator()<4>(segment, i);
        } else {
          for (std::int64_t j = max(i, first); j < min(i + 4, last); ++j) body.template operator()<1>(segment, j);
        }
      }
    }
  }
}

template <int N>
__device__ void store_value(const cuda::Pack<N>& weight, bf16* value) {
  if constexpr (N == 1) {
    *value = cuda::to_bf16(weight.value[0]);
  } else {
    static_assert(N == 4);
    const auto& w = weight.value;
    *reinterpret_cast<uint2*>(value) = uint2{cuda::to_bf16_pair(w[0], w[1]), cuda::to_bf16_pair(w[2], w[3])};
  }
}

/// The average after one more value: the small terms first, so that only one rounding is relative to the average.
__device__ inline float moved(const MovingAverage& average, float before, float taken) {
  return fmaf(average.keep, before, fmaf(average.keep_rest, before, taken));
}

// ---- Moments

template <int N>
__device__ cuda::Pack<N> load_moments(const float* from) {
  return cuda::load<N>(from);
}
template <int N>
__device__ cuda::Pack<N> load_moments(const bf16* from) {
  if constexpr (N == 1) {
    return cuda::load<1>(from);
  } else {
    static_assert(N == 4);
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    const float2 a = cuda::from_bf16_pair(words.x), b = cuda::from_bf16_pair(words.y);
    return {{a.x, a.y, b.x, b.y}};
  }
}

/// Stores the moments of elements [i, i + N) of the state.
template <int N>
__device__ void store_moments(const AdamW<float>& args, const OptimizerSegment&, std::uint64_t, std::int64_t i,
                              const cuda::Pack<N>& first, const cuda::Pack<N>& second) {
  cuda::store(first, args.first_moment + i);
  cuda::store(second, args.second_moment + i);
}
template <int N>
__device__ void store_moments(const AdamW<bf16>& args, const OptimizerSegment& segment, std::uint64_t step,
                              std::int64_t i, const cuda::Pack<N>& first, const cuda::Pack<N>& second) {
  const std::int64_t at = i - segment.begin;
  const auto index = static_cast<std::uint64_t>(segment.place(at));
  std::uint32_t words[N];
  if constexpr (N == 4) {
    if (index % 4 == 0 && segment.place.neighbours(at) >= 4) {
      const PhiloxBlock block = philox(segment.key, index / 4, step);
#pragma unroll
      for (int j = 0; j < N; ++j) words[j] = block[j];
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j)
        words[j] = cuda::philox_word_of(segment.key, step, static_cast<std::uint64_t>(segment.place(at + j)));
    }
  } else {
    words[0] = cuda::philox_word_of(segment.key, step, index);
  }
  std::uint32_t of_first[N], of_second[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    of_first[j] = round_at_random(__float_as_uint(first.value[j]), words[j]);
    of_second[j] = round_at_random(__float_as_uint(second.value[j]), words[j] >> 16);
  }
  if constexpr (N == 1) {
    args.first_moment[i].bits = static_cast<std::uint16_t>(of_first[0]);
    args.second_moment[i].bits = static_cast<std::uint16_t>(of_second[0]);
  } else {
    const auto store = [](const std::uint32_t(&bits)[N], bf16* to) {
      *reinterpret_cast<uint2*>(to) = uint2{bits[1] << 16 | bits[0], bits[3] << 16 | bits[2]};
    };
    store(of_first, args.first_moment + i);
    store(of_second, args.second_moment + i);
  }
}

template <class Moment>
__global__ void __launch_bounds__(cuda::threads_per_block) adamw_kernel(AdamW<Moment> args) {
  const StepScalars scalars = *args.scalars;
  if (!scalars.accepted) return;
  for_each_pack_of_segments(args.segments, args.num_segments, args.first_moment, args.second_moment,
                            [&]<int M>(const OptimizerSegment& segment, std::int64_t i) {
                              const std::int64_t at = i - segment.begin;
                              cuda::Pack<M> weight = cuda::load<M>(segment.weight + at);
                              const cuda::Pack<M> gradient = cuda::load<M>(segment.gradient + at);
                              cuda::Pack<M> first = load_moments<M>(args.first_moment + i);
                              cuda::Pack<M> second = load_moments<M>(args.second_moment + i);
#pragma unroll
                              for (int j = 0; j < M; ++j) {
                                const float w = weight.value[j], g = scalars.clip_factor * gradient.value[j];
                                const float m = moved(args.first, first.value[j], args.first.take * g);
                                const float v = moved(args.second, second.value[j], args.second.take * g * g);
                                const float deviation = sqrtf(v * scalars.bias_correction2) + args.epsilon;
                                const float direction =
                                    fmaf(segment.weight_decay, w, m * scalars.bias_correction1 / deviation);
                                weight.value[j] = fmaf(-scalars.rate, direction, w);
                                first.value[j] = m;
                                second.value[j] = v;
                              }
                              cuda::store(weight, segment.weight + at);
                              store_moments<M>(args, segment, scalars.step, i, first, second);
                              if (segment.value) store_value(weight, segment.value + at);
                            });
}

__global__ void __launch_bounds__(cuda::threads_per_block) sgd_kernel(Sgd args) {
  const StepScalars scalars = *args.scalars;
  if (!scalars.accepted) return;
  for_each_pack_of_segments(args.segments, args.num_segments, args.momentum_buffer, args.momentum_buffer,
                            [&]<int M>(const OptimizerSegment& segment, std::int64_t i) {
                              const std::int64_t at = i - segment.begin;
                              cuda::Pack<M> weight = cuda::load<M>(segment.weight + at);
                              cuda::Pack<M> m = cuda::load<M>(segment.gradient + at);
#pragma unroll
                              for (int j = 0; j < M; ++j) m.value[j] *= scalars.clip_factor;
                              if (args.momentum_buffer) {
                                const cuda::Pack<M> before = cuda::load<M>(args.momentum_buffer + i);
#pragma unroll
                                for (int j = 0; j < M; ++j)
                                  m.value[j] = fmaf(args.momentum, before.value[j], m.value[j]);
                                cuda::store(m, args.momentum_buffer + i);
                              }
#pragma unroll
                              for (int j = 0; j < M; ++j) {
                                const float w = weight.value[j];
                                weight.value[j] = fmaf(-scalars.rate, fmaf(segment.weight_decay, w, m.value[j]), w);
                              }
                              cuda::store(weight, segment.weight + at);
                              if (segment.value) store_value(weight, segment.value + at);
                            });
}

__global__ void sign_step_kernel(SignStep args) {
  if (!args.scalars->accepted) return;
  for (std::int64_t i = cuda::thread_of_grid(); i < args.count; i += cuda::threads_of_grid()) {
    const float g = args.gradient[i];
    args.weight[i] -= args.step * static_cast<float>((g > 0) - (g < 0));
  }
}

/// A block for each tile, but no more than run at once.
static int optimizer_blocks(Cuda cuda, std::int64_t count) {
  return static_cast<int>(std::min<std::int64_t>((count + tile_size - 1) / tile_size, cuda.multiprocessors * 4));
}

template <class M>
void adamw(Cuda cuda, const AdamW<M>& args) {
  if (args.num_segments == 0) return;
  adamw_kernel<<<optimizer_blocks(cuda, args.count), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("adamw");
}

template void adamw(Cuda, const AdamW<float>&);
template void adamw(Cuda, const AdamW<bf16>&);

void sgd(Cuda cuda, const Sgd& args) {
  if (args.num_segments == 0) return;
  sgd_kernel<<<optimizer_blocks(cuda, args.count), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("sgd");
}

void sign_step(Cuda cuda, const SignStep& args) {
  sign_step_kernel<<<cuda::blocks_for(cuda, args.count), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("sign_step");
}

}  // namespace choir::kernels
