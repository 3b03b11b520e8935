// The three products of a linear layer y = x w^T + b, and what can be fused with them: the activation after the layer
// or before it, and the gradient of the bias. A device that cannot fuse it runs a separate kernel after the product.
// Weights are [out, in].
#pragma once

#include <cstdint>

#include "framework/core/runtime.h"
#include "kernels/activation.h"

namespace choir::ops {

using kernels::Activation;

/// y [N, out] = x [N, in] weight [out, in]^T + bias [out]. y and bias, which may be
/// empty, have `out_type`.
Tensor linear(Runtime&, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias, DType out_type);

/// The same into `y`, for some rows of a larger tensor.
void linear(Runtime&, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y);

/// before [N, out] = x [N, in] weight [out, in]^T + bias [out], made here for backward. `bias` may be empty. Returns
/// its activation [N, out], or [N, out / 2] for gated kinds.
Tensor linear_activation(Runtime&, const char* name, Activation kind, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, Tensor& before);

/// dx [N, in] = dy [N, out] weight [out, in]
Tensor linear_input_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& weight);
/// The same into `dx`, for one chunk of rows of a larger tensor.
void linear_input_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& weight, const Tensor& dx);

/// dx as above for x = activation(before). Returns the gradient of `before`, shaped like it.
Tensor linear_input_gradient_activation(Runtime&, const char* name, Activation kind, const Tensor& dy,
                                        const Tensor& weight, const Tensor& before);

/// What a product does with what is in its result.
enum class Into : std::uint8_t { sum, overwrite };

/// dweight [out, in] += dy [N, out]^T x [N, in], accumulated by the product itself, or = if it is overwritten;
/// dbias [out] += column sums of dy, unless `dbias` is empty
void linear_weight_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                            const Tensor& dbias = {}, Into = Into::sum);

/// The products of several layers of one size in one call: the rows of every operand are those of the layers, one after
/// another. Without biases; `groups` layers, at least one.
///
/// y [groups * n, out] = x [groups * n, in] weight [groups * out, in]^T
Tensor grouped_linear(Runtime&, const char* name, const Tensor& x, const Tensor& weight, std::int64_t groups);
/// dx [groups * n, in] = dy [groups * n, out] weight [groups * out, in]
Tensor grouped_linear_input_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& weight,
                                     std::int64_t groups);
/// dweight [groups * out, in] += dy [groups * n, out]^T x [groups * n, in], or =
void grouped_linear_weight_gradient(Runtime&, const char* name, const Tensor& dy, const Tensor& x,
                                    const Tensor& dweight, std::int64_t groups, Into = Into::sum);

/// dbias [out] += column sums of dy [N, out]
void bias_gradient(Runtime&, const Tensor& dy, const Tensor& dbias);

}  // namespace choir::ops
