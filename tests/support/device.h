// The device that a test program runs on: the CPU (cpu_device.cpp) or the simulated GPU
// (tests/simgpu/simulated_device.cpp).
//
// The same tests are linked with one or the other, and do not depend on which.
#pragma once

#include <memory>
#include <vector>

#include "framework/core/device.h"

namespace choir::tests {

/// `streams`: how a CPU runs its streams; a GPU ignores it.
std::unique_ptr<Device> make_device(StreamMode streams = StreamMode::immediate);

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
