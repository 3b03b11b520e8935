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

void copy_to_host(const void* device, void* pinned, std::int64_t bytes, CUstream_st* stream) {
  check(cudaMemcpyAsync(pinned, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync to the host");
}

void synchronize(CUevent_st* event) { check(cudaEventSynchronize(event), "cudaEventSynchronize"); }

}  // namespace choir::cuda
