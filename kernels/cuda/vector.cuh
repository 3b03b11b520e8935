// How the CUDA kernels read and write memory: N elements at a time, computed in f32 whatever their type.
//
// A warp moves most bytes per instruction with 16-byte accesses, which need aligned addresses. A kernel is therefore
// compiled twice: with N elements in 16 bytes, and with N = 1 for odd widths and addresses. The host chooses
// (with_pack_size).
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/types.h"

namespace choir::kernels::cuda {

/// Elements of T in 16 bytes.
template <class T>
inline constexpr int pack_size = 16 / sizeof(T);

/// N consecutive elements in registers. Index it by constants only (unrolled loops): else it is placed in memory.
template <int N>
struct Pack {
  float value[N];
};

__device__ inline bf16 to_bf16(float value) {
  bf16 rounded;
  rounded.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return rounded;
}

/// Two bf16 in a word, the first in the lower half.
__device__ inline std::uint32_t to_bf16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return std::uint32_t{__bfloat16_as_ushort(pair.y)} << 16 | __bfloat16_as_ushort(pair.x);
}

__device__ inline float2 from_bf16_pair(std::uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

/// from[0 ... N). N > 1 requires an address aligned to 16 bytes.
template <int N>
__device__ Pack<N> load(const float* from) {
  if constexpr (N == 1) {
    return {{*from}};
  } else {
    Pack<N> pack;
#pragma unroll
    for (int i = 0; i + 4 <= N; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      pack.value[i] = four.x;
      pack.value[i + 1] = four.y;
      pack.value[i + 2] = four.z;
      pack.value[i + 3] = four.w;
    }
    return pack;
  }
}

template <int N>
__device__ Pack<N> load(const bf16* from) {
  if constexpr (N == 1) {
    return {{__uint_as_float(std::uint32_t{from->bits} << 16)}};
  } else {
    static_assert(N == 8);
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    const float2 a = from_bf16_pair(words.x), b = from_bf16_pair(words.y);
    const float2 c = from_bf16_pair(words.z), d = from_bf16_pair(words.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
  }
}

template <int N>
__device__ void store(const Pack<N>& pack, float* to) {
  if constexpr (N == 1) {
    *to = pack.value[0];
  } else {
#pragma unroll
    for (int i = 0; i + 4 <= N; i += 4) {
      *reinterpret_cast<float4*>(to + i) =
          float4{pack.value[i], pack.value[i + 1], pack.value[i + 2], pack.value[i + 3]};
    }
  }
}

/// Rounds to nearest, ties to even. NaN stays NaN.
template <int N>
__device__ void store(const Pack<N>& pack, bf16* to) {
  if constexpr (N == 1) {
    *to = to_bf16(pack.value[0]);
  } else {
    static_assert(N == 8);
    const auto& v = pack.value;
    *reinterpret_cast<uint4*>(to) =
        uint4{to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]), to_bf16_pair(v[4], v[5]), to_bf16_pair(v[6], v[7])};
  }
}

// ---- Which threads do what. A grid has at most a few times as many blocks as the device runs at once, so that the
// next block starts when one ends; its threads stride over the rest.

inline constexpr int threads_per_block = 256;

/// As many blocks as there are items, but at least one, and at most `per_multiprocessor` for each multiprocessor.
inline int blocks_for(Cuda cuda, std::int64_t items, int per_multiprocessor = 32) {
  return static_cast<int>(std::clamp<std::int64_t>(items, 1, std::int64_t{cuda.multiprocessors} * per_multiprocessor));
}

/// Blocks of threads_per_block threads that pass over `count` elements, N at a time.
template <int N>
int blocks_for_elements(Cuda cuda, std::int64_t count) {
  return blocks_for(cuda, (count + threads_per_block * N - 1) / (threads_per_block * N));
}

/// Threads of a block that works on one row of `items` loads: whole warps, none of them without work.
inline int threads_for_row(std::int64_t items) {
  return static_cast<int>(std::clamp<std::int64_t>((items + 31) / 32 * 32, 32, threads_per_block));
}

__device__ inline std::int64_t thread_of_grid() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline std::int64_t threads_of_grid() { return std::int64_t{gridDim.x} * blockDim.x; }

/// The whole grid passes over [0, count): body<N>(i) for elements [i, i + N), and body<1>(i) for those left at the end.
template <int N, class Body>
__device__ void for_each_pack(std::int64_t count, const Body& body) {
  const std::int64_t whole = count / N * N;
  for (std::int64_t i = thread_of_grid() * N; i < whole; i += threads_of_grid() * N) body.template operator()<N>(i);
  if constexpr (N > 1) {
    const std::int64_t i = whole + thread_of_grid();
    if (i < count) body.template operator()<1>(i);
  }
}

/// The block passes over [0, count) in the same way. A thread gets the same elements each time.
template <int N, class Body>
__device__ void for_each_pack_of_row(std::int64_t count, const Body& body) {
  const std::int64_t whole = count / N * N;
  for (std::int64_t i = std::int64_t{threadIdx.x} * N; i < whole; i += std::int64_t{blockDim.x} * N)
    body.template operator()<N>(i);
  if constexpr (N > 1) {
    const std::int64_t i = whole + threadIdx.x;
    if (i < count) body.template operator()<1>(i);
  }
}

/// True if all addresses (null ones too) are aligned to `bytes`, a power of two.
inline bool aligned(std::initializer_list<const void*> addresses, std::uintptr_t bytes = 16) {
  return std::all_of(addresses.begin(), addresses.end(),
                     [=](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; });
}

/// Calls body<N>() with N = pack_size<T> if 16-byte accesses are possible at all these addresses and at multiples of
/// `stride` elements of T behind them; else with N = 1.
template <class T, class Body>
void with_pack_size(std::int64_t stride, std::initializer_list<const void*> addresses, const Body& body) {
  if (stride % pack_size<T> == 0 && aligned(addresses))
    body.template operator()<pack_size<T>>();
  else
    body.template operator()<1>();
}

}  // namespace choir::kernels::cuda
