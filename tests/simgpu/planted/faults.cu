// Kernels with one mistake each, for the tests of the checker. The same kernels without them are in correct.cu.
#include <cstdint>

namespace choir::simgpu::planted {

// No __syncthreads between the writes and the reads of other warps.
extern "C" __global__ void missing_syncthreads(const float* x, float* y, int n) {
  extern __shared__ float staged[];
  staged[threadIdx.x] = x[blockIdx.x * n + threadIdx.x];
  y[blockIdx.x * n + threadIdx.x] = staged[n - 1 - threadIdx.x];
}

// A warp is not a barrier: its lanes may diverge.
extern "C" __global__ void missing_syncwarp(const float* x, float* y) {
  __shared__ float staged[32];
  staged[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = staged[(threadIdx.x + 1) % 32];
}

// A lane overwrites what the other lanes of its warp may not have read yet.
extern "C" __global__ void early_overwrite(const float* x, float* y) {
  __shared__ float staged[32];
  staged[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float first = staged[0];
  if (threadIdx.x == 0) staged[0] = 2 * first;
  __syncwarp();
  y[threadIdx.x] = first + staged[threadIdx.x];
}

// A thread overwrites what all warps read again and again: __syncwarp orders its own warp only. Volatile: each read is
// one.
extern "C" __global__ void overwrite_while_others_read(const float* x, float* y, int writer) {
  __shared__ volatile float staged[96];
  staged[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += staged[0];
  __syncwarp();
  if (static_cast<int>(threadIdx.x) == writer) staged[0] = sum;
  __syncthreads();
  y[threadIdx.x] = sum + staged[0];
}

// The other lanes of a warp may read before a lane has changed what they read. Volatile: they read after it in the
// text.
extern "C" __global__ void late_update(const float* x, float* y) {
  __shared__ volatile float staged[32];
  staged[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) staged[0] = 2 * staged[0];
  y[threadIdx.x] = staged[0];
}

// The last thread reads one element beyond the end.
extern "C" __global__ void off_by_one(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + x[i + 1];
}

// The last warp's sum is never written.
extern "C" __global__ void uninitialised_shared(const float* x, float* out) {
  __shared__ float sums[8];
  if (threadIdx.x % 32 == 0 && threadIdx.x < 224) sums[threadIdx.x / 32] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < 8; ++i) total += sums[i];
    *out = total;
  }
}

// y += x, but y is not initialised.
extern "C" __global__ void uninitialised_global(const float* x, float* y) { y[threadIdx.x] += x[threadIdx.x]; }

// cp.async without waiting for it.
extern "C" __global__ void missing_copy_wait(const float* x, float* y) {
  __shared__ __align__(16) float staged[128];
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(staged + 4 * threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[i * 32 + threadIdx.x] = 2 * staged[i * 32 + threadIdx.x];
}

// Half of the block takes a branch without the barrier.
extern "C" __global__ void barrier_in_branch(float* y) {
  __shared__ float staged[64];
  staged[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = staged[threadIdx.x];
}

// All blocks write to the same address.
extern "C" __global__ void block_race(float* y) {
  if (threadIdx.x == 0) *y = blockIdx.x;
}

// Eight bytes at an address that is a multiple of four.
extern "C" __global__ void misaligned(const float* x, float* y) {
  const float2 pair = *reinterpret_cast<const float2*>(x + 1);
  *y = pair.x + pair.y;
}

}  // namespace choir::simgpu::planted
