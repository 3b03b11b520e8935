#include "framework/model/activation_offload.h"

#include <utility>

#include "framework/core/pinned_memory.h"

namespace choir {

std::vector<Tensor> KeptMemory::held() const {
  std::vector<Tensor> tensors;
  for (const auto& each : memory_)
    if (auto memory = each.lock()) tensors.emplace_back(std::move(memory));
  return tensors;
}

OffloadedPart ActivationOffload::begin_leaving(std::vector<Tensor> memory) {
  OffloadedPart part{.memory = std::move(memory), .other = {}, .copied = {}};
  begin_copies(part, host_, "activations out");
  return part;
}

void ActivationOffload::begin_returning(OffloadedPart& part) {
  begin_copies(part, device_.allocator(), "activations back");
}

void ActivationOffload::begin_copies(OffloadedPart& part, Allocator& to, const char* name) {
  if (part.memory.empty()) return;
  for (const Tensor& memory : part.memory)
    part.other.emplace_back(to, memory.shape(), memory.dtype(), MemoryKind::saved);
  Event ready;
  ready.record(device_.compute());
  ready.wait(stream_);
  double bytes = 0;
  for (std::size_t i = 0; i < part.memory.size(); ++i) {
    copy_beside(device_, part.memory[i], part.other[i], stream_);
    bytes += static_cast<double>(part.memory[i].bytes());
  }
  part.copied.record(stream_);
  device_.ledger().add(name, {.bytes = bytes}, 0);  // beside the work that is timed
}

void ActivationOffload::end_copies(OffloadedPart& part) {
  if (part.other.empty()) return;
  part.copied.wait(device_.compute());
  for (std::size_t i = 0; i < part.memory.size(); ++i) part.memory[i].exchange_memory(part.other[i]);
  part.other.clear();
}

}  // namespace choir
