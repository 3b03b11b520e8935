// What the tests of CUDA kernels ask of the simulated GPU, where the GPU is real: its errors instead of findings.
#include <cuda_runtime_api.h>

#include "tests/simgpu/cublas_lt.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu {

void configure(const Options&) {
  cudaSetDevice(0);
  take_findings();  // of an earlier test
}

std::vector<Finding> take_findings() {
  std::vector<Finding> findings;
  for (const cudaError_t error : {cudaDeviceSynchronize(), cudaGetLastError()})
    if (error != cudaSuccess) findings.push_back({.kind = "CUDA", .text = cudaGetErrorString(error)});
  return findings;
}

// The tests that need a refusal are left out by main.cpp: cuBLASLt refuses what it likes.
void refuse_epilogues(bool) {}
std::int64_t heuristics_asked() { return 0; }

}  // namespace choir::simgpu
