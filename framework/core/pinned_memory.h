// Host memory to and from which a GPU copies while the host goes on. In a build without CUDA: core/cuda_absent.cpp.
#pragma once

#include <cstdint>

struct CUstream_st;
struct CUevent_st;

namespace choir::cuda {

class PinnedMemory {
 public:
  explicit PinnedMemory(std::int64_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

/// Pinned memory = device memory, behind everything enqueued on `stream`. Does not wait.
void copy_to_host(const void* device, void* pinned, std::int64_t bytes, CUstream_st* stream);
/// Returns when `event` has happened.
void synchronize(CUevent_st* event);

}  // namespace choir::cuda
