// Kernels for the tests of streams.
#pragma once

#include <cuda_runtime_api.h>

namespace choir::simgpu::planted {

void add(float* x, int n, float value, cudaStream_t stream);                   ///< x [n] += value
void double_into(const float* x, float* y, int n, cudaStream_t stream);        ///< y [n] = 2 x
void launch_with(int threads, int dynamic_shared_bytes, cudaStream_t stream);  ///< does nothing
void launch_deep(int depth, cudaStream_t stream);                              ///< with blocks [depth, 1, 1]

}  // namespace choir::simgpu::planted
