#include "framework/core/device.h"

#include <omp.h>

namespace choir {

Device::Device(DeviceKind kind, int threads, StreamMode streams)
    : kind_(kind),
      threads_(threads),
      allocator_(kind == DeviceKind::count ? counted_memory() : host_memory()),
      compute_(kind == DeviceKind::count ? StreamMode::immediate : streams,
               [threads] { omp_set_num_threads(threads); }),
      communicate_(kind == DeviceKind::count ? StreamMode::immediate : streams) {}

Device::~Device() = default;

void Device::synchronize() {
  compute_.synchronize();
  communicate_.synchronize();
}

}  // namespace choir
