// The PTX inside a fat binary, as nvcc embeds it in an object without compression (--compress-mode=none).
#pragma once

#include <string_view>
#include <vector>

namespace choir::simgpu {

struct EmbeddedPtx {
  int target;             ///< 90 for compute_90
  std::string_view text;  ///< of the program's own memory
};

/// `wrapper` is the argument of __cudaRegisterFatBinary. Throws std::runtime_error if it is not understood.
std::vector<EmbeddedPtx> embedded_ptx(const void* wrapper);

/// What the whole program has registered so far: the list of each fat binary.
const std::vector<std::vector<EmbeddedPtx>>& registered_ptx();

}  // namespace choir::simgpu
