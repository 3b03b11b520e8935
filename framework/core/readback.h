// Values of device memory that the host reads later: they are copied behind the work that is enqueued by then, and the
// host goes on meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "framework/core/device.h"
#include "framework/core/pinned_memory.h"
#include "framework/core/tensor.h"

namespace choir {

class Readback {
 public:
  /// `device` outlives this.
  explicit Readback(Device& device) : device_(device) {}
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  /// Enqueues copies of contiguous tensors on the compute stream; those of the last begin() are overwritten. Empty
  /// handles have no bytes.
  void begin(const std::vector<Tensor>& tensors);
  /// Returns when these copies are made; of a GPU, before later work is done. On device `count` they are zeros.
  void wait();
  /// Of tensor `index` of begin(), after wait().
  template <class T>
  std::span<const T> of(std::size_t index) const {
    const auto& [begin, bytes] = parts_[index];
    return {reinterpret_cast<const T*>(memory_ + begin), bytes / sizeof(T)};
  }

 private:
  struct Part {
    std::size_t begin, bytes;
  };

  Device& device_;
  std::vector<Part> parts_;
  std::size_t size_ = 0;                        // of the memory, which is one of these:
  std::vector<std::byte> unpinned_;             // of the CPU and of device `count`
  std::unique_ptr<cuda::PinnedMemory> pinned_;  // of a GPU
  std::byte* memory_ = nullptr;
  std::shared_ptr<CUevent_st> copied_;  // of a GPU
};

}  // namespace choir
