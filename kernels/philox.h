// Philox4x32-10: random numbers as a pure function of (key, counter).
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Choir has no generator state:
// the key of every random number is made from its purpose, so that no layout can change it.
#pragma once

#include <array>
#include <cstdint>

namespace choir::kernels {

using PhiloxBlock = std::array<std::uint32_t, 4>;

/// Four independent uniform 32-bit words for one 64-bit key and one 128-bit counter (low, high).
constexpr PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_low, std::uint64_t counter_high) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t c0 = static_cast<std::uint32_t>(counter_low), c1 = static_cast<std::uint32_t>(counter_low >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(counter_high), c3 = static_cast<std::uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

/// One uniform word for element `index` of stream (key, stream): word index % 4 of block index / 4.
constexpr std::uint32_t philox_word(std::uint64_t key, std::uint64_t stream, std::uint64_t index) {
  return philox(key, index / 4, stream)[index % 4];
}

}  // namespace choir::kernels
