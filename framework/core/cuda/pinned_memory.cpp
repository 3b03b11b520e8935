#include "framework/core/pinned_memory.h"

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/cuda/failure.h"

namespace choir::cuda {

using kernels::cuda::check;

PinnedMemory::PinnedMemory(std::int64_t bytes) {
  check(cudaMallocHost(&data_, static_cast<std::size_t>(bytes)),
        "cudaMallocHost of " + std::to_string(bytes) + " bytes");
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

void copy(const void* from, void* to, std::int64_t bytes, CUstream_st* stream) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

void synchronize(CUevent_st* event) { check(cudaEventSynchronize(event), "cudaEventSynchronize"); }

namespace {

class PinnedSource : public MemorySource {
 public:
  void* map(std::int64_t bytes) override {
    void* address = nullptr;
    const cudaError_t status = cudaMallocHost(&address, static_cast<std::size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // the allocator handles it; the next launch must not report it
      return nullptr;
    }
    check(status, "cudaMallocHost of " + std::to_string(bytes) + " bytes");
    return address;
  }
  void unmap(void* address, std::int64_t) noexcept override { cudaFreeHost(address); }
};

}  // namespace

std::unique_ptr<MemorySource> pinned_memory() { return std::make_unique<PinnedSource>(); }

}  // namespace choir::cuda
