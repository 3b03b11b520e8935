// Digests of ranges of a buffer.
//
//   digest = sum over elements of mix(bits of element i, i)  mod 2^64,  i its place in the buffer
//
// For a given place the mix is a bijection of the bits: a change of one element always changes the digest. Two changes
// leave it with a probability of 2^-64. Sums of integers have the same bits in any order.
#pragma once

#include <cstdint>

#include "kernels/range.h"
#include "kernels/types.h"

namespace choir::kernels {

constexpr std::uint64_t mix(std::uint64_t bits, std::uint64_t index) {
  std::uint64_t h = index * 0x9E3779B97F4A7C15ull ^ bits;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  h ^= h >> 29;
  h *= 0xD6E8FEB86659FD93ull;
  return h ^ (h >> 32);
}

/// T: float, or bf16.
template <class T>
struct Digest {
  const T* x;
  const Range* ranges;  ///< of about equal lengths: on a GPU each is the work of one block
  std::int64_t num_ranges;
  std::uint64_t* digests;  ///< [num_ranges]
};

template <class T>
void digest(Cpu, const Digest<T>&);
template <class T>
void digest(Cuda, const Digest<T>&);

}  // namespace choir::kernels
