// The element types and device tags that every kernel shares.
//
// A kernel sees raw pointers, sizes and a device tag: no tensors, no processes, no configuration.
// Kernels are overloaded on the tag, so that `grep norm_forward` finds every implementation.
#pragma once

#include <bit>
#include <cstdint>

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

/// The type in which a kernel on T keeps statistics, sums and 1-D parameters: f32, and f64 where T is f64 (tests).
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

/// Selects the CPU kernels. Plain values: the owner is `core::Device`.
struct Cpu {
  int threads = 1;                    ///< OpenMP threads that a kernel may use
  cpu::MatmulPlans* plans = nullptr;  ///< oneDNN primitives already made, by shape
};

}  // namespace choir::kernels
