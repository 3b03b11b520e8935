// The NVTX ranges of this process, without a profiler: the simulator gets Choir's labels as a profiler would.
#pragma once

#include <string>
#include <vector>

namespace choir::simgpu {

/// Open on the calling thread, outermost first.
std::vector<std::string>& nvtx_ranges();

}  // namespace choir::simgpu
