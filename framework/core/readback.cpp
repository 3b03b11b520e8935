#include "framework/core/readback.h"

#include <algorithm>
#include <cstring>

namespace choir {

// A copy may still be to come, behind a call of another rank that has ended and that never will: a GPU is not waited
// for, and the memory is left to it.
Readback::~Readback() {
  try {
    if (device_.compute().mode() != StreamMode::cuda) wait();
    if (!copied_ || cuda::done(copied_.get())) return;
  } catch (...) {  // what has failed is reported by what waits for its result
  }
  static_cast<void>(pinned_.release());
}

void Readback::begin(const std::vector<Tensor>& tensors) {
  constexpr std::size_t alignment = 16;
  parts_.clear();
  std::size_t needed = 0;
  for (const Tensor& tensor : tensors) {
    parts_.push_back({needed, tensor ? static_cast<std::size_t>(tensor.bytes()) : 0});
    needed += (parts_.back().bytes + alignment - 1) / alignment * alignment;
  }
  Stream& stream = device_.compute();
  const bool on_gpu = stream.mode() == StreamMode::cuda;
  if (needed > size_) {
    wait();
    size_ = needed;
    if (on_gpu)
      pinned_ = std::make_unique<cuda::PinnedMemory>(static_cast<std::int64_t>(size_));
    else
      unpinned_.assign(size_, std::byte{0});
    memory_ = on_gpu ? static_cast<std::byte*>(pinned_->data()) : unpinned_.data();
  }
  if (device_.counts_only()) return;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [begin, bytes] = parts_[i];
    if (bytes == 0) continue;
    if (on_gpu)
      cuda::copy(tensors[i].raw(), memory_ + begin, static_cast<std::int64_t>(bytes), stream.cuda());
    else
      stream.enqueue([from = tensors[i], to = memory_ + begin, size = bytes] { std::memcpy(to, from.raw(), size); });
  }
  if (on_gpu) copied_ = cuda::record(stream.cuda());
}

void Readback::wait() {
  if (copied_) cuda::synchronize(copied_.get());
  copied_.reset();
  if (device_.compute().mode() != StreamMode::cuda) device_.compute().synchronize();
}

}  // namespace choir
