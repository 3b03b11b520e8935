// The product of a linear layer in numbers of 8 bits (kernels/fp8.h). Each row of a factor has a scale, which only its
// own numbers decide:
//
//   rows = quantise(x)
//   y    = scaled_linear(rows of x, rows of the weight, bias)
//
// If ranks have parts of a row, the largest of their exponents is that of the row: exponents come first, their maximum
// is taken over the ranks, and numbers are rounded with these.
#pragma once

#include "framework/core/runtime.h"

namespace choir::ops {

/// What has one scale: a row of a matrix, or a column, which becomes a row of codes.
enum class ScaledBy : std::uint8_t { rows, columns };

/// Element [i, k] is scales[i] times the number with code codes[i, k].
struct ScaledRows {
  Tensor codes;   ///< [rows, K] u8 of e4m3; K a multiple of 16, zeros behind the numbers
  Tensor scales;  ///< [rows] f32, powers of two
};

/// Writes the exponents of the rows of x [N, K] bf16 to `exponents` [N] u8; of its columns, to [K].
void scale_exponents(Runtime&, const Tensor& x, ScaledBy by, const Tensor& exponents);

/// The rows of x [N, K] bf16; or its columns, as rows. No exponents: those of scale_exponents(), which rows get without
/// being read once more.
ScaledRows quantise(Runtime&, const Tensor& x, ScaledBy by, const Tensor& exponents = {});

/// y [N, out] bf16 = x [N, K] weight [out, K]^T + bias [out], which may be empty.
void scaled_linear(Runtime&, const char* name, const ScaledRows& x, const ScaledRows& weight, const Tensor& bias,
                   const Tensor& y);

}  // namespace choir::ops
