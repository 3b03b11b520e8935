// Philox words on the GPU without an array that is indexed at run time, which would be placed in memory.
#pragma once

#include "kernels/philox.h"

namespace choir::kernels::cuda {

/// philox_word()
__device__ inline std::uint32_t philox_word_of(std::uint64_t key, std::uint64_t stream, std::uint64_t index) {
  const PhiloxBlock words = philox(key, index / 4, stream);
  const std::uint32_t low = index % 2 == 0 ? words[0] : words[1], high = index % 2 == 0 ? words[2] : words[3];
  return index % 4 < 2 ? low : high;
}

}  // namespace choir::kernels::cuda
