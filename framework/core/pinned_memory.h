// Memory of the host that a GPU reaches: it copies to and from it while the host goes on, and its kernels read and
// write it over the bus. In a build without CUDA: core/cuda_absent.cpp.
#pragma once

#include <cstdint>
#include <memory>

#include "framework/core/allocator.h"

struct CUstream_st;
struct CUevent_st;

namespace choir {

class Device;
class Stream;
class Tensor;

/// In place of a GPU's memory, for what a step reads and writes once: pinned memory, which counts as memory of the
/// device in Device::upload() and download(). Of device `count`: addresses. Of the CPU: its memory.
std::unique_ptr<MemorySource> host_memory_beside(const Device&);

/// to = from, contiguous and of one size, in memory of the device or beside it, behind everything enqueued on `stream`.
/// Does not wait. Nothing on device `count`.
void copy_beside(const Device&, const Tensor& from, const Tensor& to, Stream& stream);

namespace cuda {

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

/// Pinned memory that is allocated and freed at once: it is returned when no stream uses it any longer.
std::unique_ptr<MemorySource> pinned_memory();

/// Device or pinned memory = device or pinned memory, behind everything enqueued on `stream`. Does not wait.
void copy(const void* from, void* to, std::int64_t bytes, CUstream_st* stream);
/// Returns when `event` has happened.
void synchronize(CUevent_st* event);

}  // namespace cuda
}  // namespace choir
