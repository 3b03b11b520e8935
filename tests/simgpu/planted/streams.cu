// Kernels for the tests of streams.
#include "tests/simgpu/planted/streams.h"

namespace choir::simgpu::planted {

__global__ void add_kernel(float* x, int n, float value) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += value;
}

__global__ void double_kernel(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}

void add(float* x, int n, float value, cudaStream_t stream) {
  add_kernel<<<(n + 63) / 64, 64, 0, stream>>>(x, n, value);
}

void double_into(const float* x, float* y, int n, cudaStream_t stream) {
  double_kernel<<<(n + 63) / 64, 64, 0, stream>>>(x, y, n);
}

void launch_with(int threads, int dynamic_shared_bytes, cudaStream_t stream) {
  add_kernel<<<1, threads, dynamic_shared_bytes, stream>>>(nullptr, 0, 0);
}

void launch_deep(int depth, cudaStream_t stream) {
  add_kernel<<<1, dim3(1, 1, static_cast<unsigned>(depth)), 0, stream>>>(nullptr, 0, 0);
}

}  // namespace choir::simgpu::planted
