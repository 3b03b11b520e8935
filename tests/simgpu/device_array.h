// What the tests of CUDA kernels share: values in device memory, the CUDA device tag, and the comparison with the CPU.
//
// A kernel runs on the simulated GPU with all checks on; its findings fail the test (ExpectNoFindings).
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/failure.h"
#include "tests/kernels/compare.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {

/// Values in device memory, `offset` elements behind an aligned address: 1 makes 16-byte accesses impossible.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host, std::int64_t offset = 0)
      : count_(static_cast<std::int64_t>(host.size())), offset_(offset) {
    kernels::cuda::check(cudaMalloc(&memory_, static_cast<std::size_t>(count_ + offset) * sizeof(T)), "cudaMalloc");
    kernels::cuda::check(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
                         "cudaMemcpy");
  }
  /// Uninitialised.
  explicit DeviceArray(std::int64_t count, std::int64_t offset = 0) : count_(count), offset_(offset) {
    kernels::cuda::check(cudaMalloc(&memory_, static_cast<std::size_t>(count + offset) * sizeof(T)), "cudaMalloc");
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(memory_) + offset_; }
  /// After everything enqueued on any stream.
  std::vector<T> host() const {
    std::vector<T> values(static_cast<std::size_t>(count_));
    kernels::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    kernels::cuda::check(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
                         "cudaMemcpy");
    return values;
  }

 private:
  void* memory_ = nullptr;
  std::int64_t count_, offset_;
};

/// A stream on a simulated GPU of one generation: sm_80, sm_90 or sm_100.
class CudaTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    configure({.compute_capability = GetParam()});
    kernels::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  void TearDown() override {
    cudaStreamDestroy(stream);
    for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
  }
  kernels::Cuda cuda() const { return {.stream = stream, .multiprocessors = 4}; }

  cudaStream_t stream = nullptr;
};

}  // namespace choir::simgpu::tests
