#include "kernels/cuda/failure.h"

namespace choir::kernels::cuda {

static std::string on_current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? " on GPU " + std::to_string(device) : "";
}

Failure::Failure(const std::string& library_call, const std::string& words)
    : std::runtime_error(library_call + on_current_device() + ": " + words) {}

void check(cudaError_t status, const std::string& call) {
  if (status != cudaSuccess)
    throw Failure(call, std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")");
}

void check_launch(const char* kernel) {
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    check(status, std::string("launch of ") + kernel);
}

}  // namespace choir::kernels::cuda
