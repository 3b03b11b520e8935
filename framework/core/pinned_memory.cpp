#include "framework/core/pinned_memory.h"

#include "framework/core/device.h"

namespace choir {

std::unique_ptr<MemorySource> host_memory_beside(const Device& device) {
  if (device.counts_only()) return counted_memory();
  return device.kind() == DeviceKind::cuda ? cuda::pinned_memory() : host_memory();
}

}  // namespace choir
