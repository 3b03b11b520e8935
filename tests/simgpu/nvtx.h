// The NVTX ranges of this process, without a profiler: Choir's labels reach the simulator by the way of the real tools.
#pragma once

#include <string>
#include <vector>

namespace choir::simgpu {

/// Open on the calling thread, outermost first.
std::vector<std::string>& nvtx_ranges();

}  // namespace choir::simgpu
