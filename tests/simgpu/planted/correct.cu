// Correct kernels that use what the interpreter must support: those of faults.cu without their mistakes, tensor cores.
#include <cuda_bf16.h>
#include <mma.h>

#include <cstdint>

namespace choir::simgpu::planted {

// out[block] = sum of x over the block's 256 elements: shuffles, then shared memory.
extern "C" __global__ void block_sum(const float* x, float* out) {
  __shared__ float sums[8];
  float value = x[blockIdx.x * 256 + threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffff, value, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < 8; ++i) total += sums[i];
    out[blockIdx.x] = total;
  }
}

// y = x reversed within each block, through dynamic shared memory.
extern "C" __global__ void reverse(const float* x, float* y, int n) {
  extern __shared__ float staged[];
  staged[threadIdx.x] = x[blockIdx.x * n + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * n + threadIdx.x] = staged[n - 1 - threadIdx.x];
}

// Neighbours of one warp exchange values through shared memory.
extern "C" __global__ void neighbour(const float* x, float* y) {
  __shared__ float staged[32];
  staged[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = staged[(threadIdx.x + 1) % 32];
}

// y[i] = x[i] + x[i + 1], the last y[i] = x[i].
extern "C" __global__ void pair_sum(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = i + 1 < n ? x[i] + x[i + 1] : x[i];
}

__device__ void copy_async_16(void* shared, const void* global) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// y = 2 x, staged by cp.async: each thread copies 4 elements, and another one uses them.
extern "C" __global__ void staged_double(const float* x, float* y) {
  __shared__ __align__(16) float staged[128];
  copy_async_16(staged + 4 * threadIdx.x, x + 4 * threadIdx.x);
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[i * 32 + threadIdx.x] = 2 * staged[i * 32 + threadIdx.x];
}

// histogram[x[i]] += 1
extern "C" __global__ void histogram(const int* x, int* counts, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&counts[x[i]], 1);
}

// c [16, 8] = a [16, 16] b [16, 8], b given as its transpose: ldmatrix and mma.sync.
extern "C" __global__ void product_mma(const __nv_bfloat16* a, const __nv_bfloat16* b_transposed, float* c) {
  __shared__ __align__(16) __nv_bfloat16 sa[16][16], sb[8][16];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) sb[i / 16][i % 16] = b_transposed[i];
  __syncwarp();
  std::uint32_t ra[4], rb[2];
  const auto row_a = static_cast<std::uint32_t>(__cvta_generic_to_shared(&sa[lane % 16][lane / 16 * 8]));
  const auto row_b = static_cast<std::uint32_t>(__cvta_generic_to_shared(&sb[lane % 8][lane / 8 % 2 * 8]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
               : "r"(row_a)
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(rb[0]), "=r"(rb[1])
               : "r"(row_b)
               : "memory");
  float d[4] = {0, 0, 0, 0};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (int r = 0; r < 4; ++r) c[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = d[r];
}

// c [16, 16] = a [16, 16] b [16, 16]
extern "C" __global__ void product_wmma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __nv_bfloat16, row_major> fa;
  fragment<matrix_b, 16, 16, 16, __nv_bfloat16, row_major> fb;
  fragment<accumulator, 16, 16, 16, float> fc;
  load_matrix_sync(fa, a, 16);
  load_matrix_sync(fb, b, 16);
  fill_fragment(fc, 0.0f);
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(c, fc, 16, mem_row_major);
}

// The lanes of a warp take different paths through loops and branches of different lengths, and halves of it
// synchronize separately.
extern "C" __global__ void diverging(const int* turns, int* out) {
  const int lane = threadIdx.x;
  int sum = 0;
  for (int i = 0; i < turns[lane]; ++i) {
    if ((i + lane) % 3 == 0) continue;
    sum += i * lane;
    if (sum > 900) break;
  }
  if (lane < 16)
    sum += __shfl_xor_sync(0x0000ffffu, sum, 1);
  else if (lane % 4 != 3)  // a group that is not next to each other
    sum -= __shfl_sync(0x77770000u, sum, lane & ~3);
  switch (lane % 7) {
    case 0:
      sum *= 3;
      break;
    case 1:
      sum ^= 0x55;
      break;
    case 2:
      sum -= lane;
      break;
    case 3:
      sum = -sum;
      break;
    case 4:
      sum += 1000;
      break;
    default:
      sum /= 2;
  }
  out[lane] = sum + 10000 * __reduce_add_sync(0xffffffffu, lane % 7 == 5);
}

// Some lanes exit early; the others still synchronize, in any order of arrival.
extern "C" __global__ void leaving(const float* x, float* y, int n) {
  __shared__ float staged[32];
  const int lane = threadIdx.x;
  if (lane >= n || lane % 5 == 4) return;
  staged[lane] = x[lane];
  __syncwarp();
  y[lane] = staged[0];
}

// Arithmetic of many kinds, one element a thread: out[8 i ...].
extern "C" __global__ void arithmetic(const float* x, const int* k, double* out) {
  const int i = threadIdx.x;
  const float f = x[i];
  const int n = k[i];
  out[8 * i + 0] = static_cast<double>(f) * n + 1.0 / 3;
  out[8 * i + 1] = expf(f) - logf(fabsf(f) + 1) + sinf(f) * sqrtf(fabsf(f));
  out[8 * i + 2] = __bfloat162float(__float2bfloat16(f));
  out[8 * i + 3] = static_cast<double>(static_cast<long long>(n) * n % 1000003 / 7);
  out[8 * i + 4] = __popc(n) + __clz(n) + (n >> 3) + (n << 2) + (n ^ 0x55);
  out[8 * i + 5] = static_cast<double>(__umulhi(static_cast<unsigned>(n) * 2654435761u, 0x9E3779B9u));
  out[8 * i + 6] = fmaxf(f, 0.5f) + fminf(f, -0.5f) + rintf(f * 10) + floorf(f) + truncf(f * 3);
  out[8 * i + 7] = __ballot_sync(0xffffffff, n % 3 == 0) % 1000 + __any_sync(0xffffffff, n > 1000000);
}

}  // namespace choir::simgpu::planted
