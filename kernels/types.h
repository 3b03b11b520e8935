// The element types and device tags that every kernel shares.
//
// A kernel sees raw pointers, sizes and a device tag: no tensors, no processes, no configuration.
// Kernels are overloaded on the tag, so that `grep norm_forward` finds every implementation.
#pragma once

#include <bit>
#include <cstdint>

struct CUstream_st;  // cudaStream_t points to one; files that need only this do not include CUDA's headers

namespace choir::kernels {

/// bfloat16: the upper half of an IEEE f32. Conversion from f32 rounds to nearest, ties to even; NaN stays NaN.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  explicit constexpr bf16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = word + 0x7fffu + ((word >> 16) & 1u);
    bits = static_cast<std::uint16_t>(is_nan ? (word >> 16) | 0x40u : rounded >> 16);
  }
  constexpr operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// The type in which a kernel on T keeps statistics, sums and 1-D parameters: f32, and f64 if T is f64 (tests).
template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateType<T>::type;

namespace cpu {
class MatmulPlans;
}

/// What multiplies in those kernels that have a choice.
enum class CpuUnit : std::uint8_t {
  library,  ///< oneDNN multiplies matrices; attention of bf16 multiplies in f32
  vectors,  ///< matrices and attention of bf16 are multiplied in vectors of AVX-512; requires cpu::has_pairs()
  tiles,    ///< those of bf16 are multiplied on tiles, as matrices of f32 are by oneDNN; requires cpu::has_tiles()
};

/// Selects the CPU kernels. Plain values: the owner is `choir::Device`.
struct Cpu {
  int threads = 1;                    ///< OpenMP threads that a kernel may use
  cpu::MatmulPlans* plans = nullptr;  ///< cached oneDNN primitives, by shape
  CpuUnit unit = CpuUnit::library;
};

/// True if the build found the CUDA toolkit: the overloads for Cuda exist, for f32 and bf16, not for f64.
#ifdef CHOIR_CUDA
inline constexpr bool built_with_cuda = true;
#else
inline constexpr bool built_with_cuda = false;
#endif

namespace cuda {
class MatmulPlans;
class AttentionPlans;
}  // namespace cuda

/// Selects the CUDA kernels. Everything is enqueued on `stream`; nothing waits. Plain values: the owner is
/// `choir::Device`.
struct Cuda {
  CUstream_st* stream = nullptr;
  cuda::MatmulPlans* matmul_plans = nullptr;        ///< cuBLASLt and its plans, by shape
  cuda::AttentionPlans* attention_plans = nullptr;  ///< cuDNN and its plans, by shape
  int multiprocessors = 1;                          ///< of the device
};

}  // namespace choir::kernels
