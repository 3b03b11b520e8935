// The device that a test program runs on: the CPU (cpu_device.cpp), the simulated GPU (tests/simgpu/simulated_device.cpp)
// or a real one (tests/simgpu/real/real_device.cpp).
//
// The same tests are linked with one of them, and do not depend on which.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "framework/core/device.h"

namespace choir::tests {

/// `streams`: how a CPU runs its streams; a GPU ignores it.
std::unique_ptr<Device> make_device(StreamMode streams = StreamMode::immediate);

/// Why the tests cannot run here; empty: they can.
std::string reason_to_skip();

/// True on the simulated GPU, which interprets every thread: a step of a small model takes a second there. Tests then
/// run some of their models, layouts and steps, chosen so that together they still use every kernel and collective.
bool device_is_simulated();

/// The values of a tensor. Waits for everything enqueued.
template <class T>
std::vector<T> host_values(Device& device, const Tensor& tensor) {
  std::vector<T> values(static_cast<std::size_t>(tensor.count()));
  device.synchronize();
  device.download(tensor.raw(), values.data(), tensor.bytes());
  return values;
}

}  // namespace choir::tests
