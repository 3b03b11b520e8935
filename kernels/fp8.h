// Products of numbers of 8 bits: e4m3 has a sign, 4 bits of exponent and 3 of mantissa, and no infinity (Micikevicius
// et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433). Each row of a matrix has a scale, a power of two:
//
//   x[i, k]  is about  2^(exponents[i] - 127) value_of_e4m3(codes[i, k])
//   product  y[i, j] = sum over k of x[i, k] w[j, k] (+ bias[j]), both factors by rows
//
// The scale is the smallest power of two with which the largest number of the row is at most 448, the largest of e4m3.
// So it depends on the row alone, whatever other rows a kernel is given. Exponents grow with the numbers: of a row of
// which several ranks have parts, the exponent is the largest of those of its parts.
//
// Numbers are rounded to nearest, ties to even: normal ones by at most 2^-4 of themselves, those below 2^-6 of the
// scale by at most 2^-10 of the scale. A code times a scale is a number of bf16, except in rows with numbers of 2^127
// and more, so the CPU multiplies in bf16 what the codes stand for: the same factors, summed in f32. NaN and infinity
// become the code of NaN.
//
// CUDA: cuBLASLt, its outer-vector scaling (CUDA 12.9, compute capability 9.0); if n is not a multiple of 16, as on the
// CPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/matmul.h"
#include "kernels/types.h"

namespace choir::kernels {

/// The code of NaN, and of the largest number, 448.
inline constexpr std::uint8_t e4m3_nan = 0x7f, e4m3_largest = 0x7e;

/// The code of the nearest number of e4m3, ties to even; of the largest one for all beyond it; of NaN for NaN and
/// infinity.
constexpr std::uint8_t to_e4m3(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = word >> 24 & 0x80u, size = word & 0x7fffffffu;
  // From 2^-6 on, 3 bits of the mantissa remain, and the exponent is counted from -7 and not from -127.
  const std::uint32_t normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
  // Below, numbers are multiples of 2^-9, as are those of f32 from 2^14 to 2^15.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 16384.0f) - std::bit_cast<std::uint32_t>(16384.0f);
  const std::uint32_t code = size < std::bit_cast<std::uint32_t>(0x1p-6f) ? subnormal : normal;
  const std::uint32_t finite = code < e4m3_largest ? code : e4m3_largest;
  return static_cast<std::uint8_t>(sign | (size < 0x7f800000u ? finite : e4m3_nan));
}

constexpr float value_of_e4m3(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24, exponent = code >> 3 & 15u, mantissa = code & 7u;
  if ((code & 0x7fu) == e4m3_nan) return std::bit_cast<float>(sign | 0x7fc00000u);
  const float size = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                   : std::bit_cast<float>((exponent + 120u) << 23 | mantissa << 20);
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(size));
}

/// An exponent e stands for 2^(e - 127). The smallest one leaves 2^-9 of the scale a normal number of bf16.
inline constexpr int smallest_scale_exponent = 10;

/// Of a row whose largest number has these bits in bf16, without its sign.
constexpr std::uint8_t scale_exponent(std::uint32_t largest) {
  const auto exponent = static_cast<int>(largest >> 7);  // 448 is 1.75 2^8: seven bits of mantissa, 110'0000
  const int fitting = exponent - 8 + ((largest & 0x7fu) > 0x60u ? 1 : 0);
  return static_cast<std::uint8_t>(fitting > smallest_scale_exponent ? fitting : smallest_scale_exponent);
}

constexpr float scale_of(std::uint8_t exponent) { return std::bit_cast<float>(std::uint32_t{exponent} << 23); }
/// What numbers are multiplied by before they are rounded: 1 / scale.
constexpr float inverse_scale_of(std::uint8_t exponent) { return std::bit_cast<float>((254u - exponent) << 23); }

/// Codes in a row for `count` numbers: cuBLASLt takes multiples of 16. Those behind the numbers are zeros.
constexpr std::int64_t codes_of(std::int64_t count) { return std::max<std::int64_t>(16, (count + 15) / 16 * 16); }

/// exponents[i] = scale_exponent() of row i of x; of column i if `by_columns`.
struct ScaleExponents {
  const bf16* x;  ///< [rows, width], rows `stride` apart
  std::int64_t rows, width, stride;
  bool by_columns;
  std::uint8_t* exponents;    ///< [rows], or [width] if by columns
  void* workspace = nullptr;  ///< scale_exponents_workspace_bytes()
};

/// Rows of codes from the rows of x; from the columns if `by_columns`, which are then the rows of its transpose.
struct Quantise {
  const bf16* x;  ///< [rows, width], rows `stride` apart
  std::int64_t rows, width, stride;
  bool by_columns;
  /// [rows], or [width] if by columns: at least those of ScaleExponents. Null, and not by columns: those of the rows,
  /// which are then read once and not twice.
  const std::uint8_t* exponents;
  std::uint8_t* codes;  ///< [rows, codes_of(width)], or [width, codes_of(rows)]; 16-byte aligned
  float* scales;        ///< as many as exponents: scale_of() each
};

/// c [m, n] = a b^T + bias, sums in f32.
struct ScaledMatmul {
  const std::uint8_t* a;             ///< codes [m, k], 16-byte aligned
  const std::uint8_t* b;             ///< codes [n, k], 16-byte aligned
  const float *a_scales, *b_scales;  ///< [m], [n]
  bf16* c;                           ///< [m, n]
  const bf16* bias = nullptr;        ///< [n] at a multiple of 16 bytes, or null
  std::int64_t m, n, k;              ///< k is codes_of() something
  void* workspace = nullptr;         ///< scaled_matmul_workspace_bytes() of the same arguments, 64-byte aligned
};

/// The same product of what the codes stand for, a and b; without a workspace.
inline Matmul<bf16, bf16> widened(const ScaledMatmul& args, const bf16* a, const bf16* b) {
  return {.a = a,
          .b = b,
          .c = args.c,
          .bias = args.bias,
          .m = args.m,
          .n = args.n,
          .k = args.k,
          .a_stride = args.k,
          .b_stride = args.k,
          .c_stride = args.n,
          .transpose_b = true};
}

std::int64_t scale_exponents_workspace_bytes(Cpu, const ScaleExponents&);
std::int64_t scale_exponents_workspace_bytes(Cuda, const ScaleExponents&);
void scale_exponents(Cpu, const ScaleExponents&);
void scale_exponents(Cuda, const ScaleExponents&);

void quantise(Cpu, const Quantise&);
void quantise(Cuda, const Quantise&);

/// Does not read the pointers, so that device `count` can call it without memory.
std::int64_t scaled_matmul_workspace_bytes(Cpu, const ScaledMatmul&);
std::int64_t scaled_matmul_workspace_bytes(Cuda, const ScaledMatmul&);
void scaled_matmul(Cpu, const ScaledMatmul&);
void scaled_matmul(Cuda, const ScaledMatmul&);

namespace cuda {

/// True if cuBLASLt multiplies the codes; if not, what they stand for is multiplied in bf16.
constexpr bool multiplies_codes(const ScaledMatmul& args) { return args.n % 16 == 0; }

/// y [rows, width] = what the codes stand for; width is a multiple of 16.
void dequantise(Cuda, const std::uint8_t* codes, const float* scales, bf16* y, std::int64_t rows, std::int64_t width);

}  // namespace cuda
}  // namespace choir::kernels
