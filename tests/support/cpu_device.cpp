#include "tests/support/device.h"

namespace choir::tests {

std::unique_ptr<Device> make_device(StreamMode streams) { return std::make_unique<Device>(1, streams); }

std::string reason_to_skip() { return {}; }

bool device_is_simulated() { return false; }

}  // namespace choir::tests
