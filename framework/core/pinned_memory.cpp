#include "framework/core/pinned_memory.h"

#include <cstring>

#include "framework/core/device.h"

namespace choir {

std::unique_ptr<MemorySource> host_memory_beside(const Device& device) {
  if (device.counts_only()) return counted_memory();
  return device.kind() == DeviceKind::cuda ? cuda::pinned_memory() : host_memory();
}

void copy_beside(const Device& device, const Tensor& from, const Tensor& to, Stream& stream) {
  if (device.counts_only()) return;
  if (stream.mode() == StreamMode::cuda) return cuda::copy(from.raw(), to.raw(), from.bytes(), stream.cuda());
  stream.enqueue([from, to] { std::memcpy(to.raw(), from.raw(), static_cast<std::size_t>(from.bytes())); });
}

}  // namespace choir
