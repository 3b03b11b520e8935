// The nonlinearity of the feed-forward layer.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/activation.h"

namespace choir::ops {

using kernels::Activation;

/// Floating-point operations for one element of y, as the ledger counts them whatever kernel does them.
inline constexpr double activation_flops = 12, activation_backward_flops = 20;

/// y [N, F] from x [N, F], or [N, 2 F] for gated kinds
Tensor activation(Runtime&, Activation kind, const Tensor& x);

/// dx, shaped like x, from dy [N, F]. Overwrites dy with dx if the shapes are equal, and returns it.
Tensor activation_backward(Runtime&, Activation kind, const Tensor& dy, const Tensor& x);

}  // namespace choir::ops
