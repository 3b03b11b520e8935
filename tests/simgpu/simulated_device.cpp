// The tests of other folders, on a simulated GPU: each rank has its own, with all checks on.
#include "tests/support/device.h"

namespace choir::tests {

std::unique_ptr<Device> make_device(StreamMode) { return std::make_unique<Device>(GpuOptions{}, 1); }

std::string reason_to_skip() { return {}; }

bool device_is_simulated() { return true; }

}  // namespace choir::tests
