// The PTX instructions for tensor cores, one function each. The comments say which lane holds what (PTX ISA 9.0,
// "Matrix fragments for mma.m16n8k16" and "ldmatrix").
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels::cuda {

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

__device__ inline std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

/// Four 8 x 8 matrices of bf16. Lane 8 m + r passes the address of row r of matrix m, 16-byte aligned. word[m] of lane
/// l is then elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix m.
__device__ inline void load_matrices(std::uint32_t (&word)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same, with each matrix transposed.
__device__ inline void load_matrices_transposed(std::uint32_t (&word)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

/// c [16, 8] += a [16, 16] b [16, 8] in f32. Lane l, with g = l / 4 and t = 2 (l % 4), holds
///   a[0] = a(g, t..t+1), a[1] = a(g + 8, t..), a[2] = a(g, t + 8..), a[3] = a(g + 8, t + 8..),
///   b0 = b(t..t+1, g), b1 = b(t + 8.., g),   c0, c1 = c(g, t..t+1), c2, c3 = c(g + 8, t..t+1).
__device__ inline void multiply_add(float& c0, float& c1, float& c2, float& c3, const std::uint32_t (&a)[4],
                                    std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Copies from global to shared memory that overlap the computation

/// Both addresses are aligned to `bytes`, 4 or 16. If not `present`, writes zeros and does not read `from`.
template <int bytes>
__device__ void copy_async(void* shared, const void* from, bool present) {
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0)
                 : "memory");
  } else {
    static_assert(bytes == 4);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(from)), "r"(present ? 4 : 0)
                 : "memory");
  }
}

/// Waits until the copies that this thread started are complete. Other threads see them after a barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace choir::kernels::cuda
