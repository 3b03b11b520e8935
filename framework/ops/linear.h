// The three products of a linear layer y = x w^T + b. Weights are [out, in].
#pragma once

#include "framework/core/runtime.h"

namespace choir::ops {

/// y [N, out] = x [N, in] weight [out, in]^T + bias [out]. `bias` may be empty. y has `out_type`.
Tensor linear(Runtime&, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias, DType out_type);

/// dx [N, in] = dy [N, out] weight [out, in]
Tensor linear_input_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& weight);
/// The same into `dx`, for one chunk of rows of a larger tensor.
void linear_input_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& weight, const Tensor& dx);

/// dweight [out, in] += dy [N, out]^T x [N, in], accumulated by the product itself
void linear_weight_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& x, const Tensor& dweight);

/// dbias [out] += column sums of dy [N, out]
void bias_gradient(Runtime&, const Tensor& dy, const Tensor& dbias);

}  // namespace choir::ops
