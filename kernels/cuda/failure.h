// What a kernel throws if a CUDA library refuses a call: the call and the library's message.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace choir::kernels::cuda {

/// "cudaLaunchKernel (norm_forward) on GPU 0: an illegal memory access was encountered (cudaErrorIllegalAddress)"
class Failure : public std::runtime_error {
 public:
  Failure(const std::string& library_call, const std::string& words);
};

/// Throws Failure unless `status` is cudaSuccess. `call` names the call and its purpose.
void check(cudaError_t status, const std::string& call);

/// After a kernel launch: throws Failure if the launch was refused. Does not wait for the kernel.
void check_launch(const char* kernel);

}  // namespace choir::kernels::cuda
