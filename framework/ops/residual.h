// Residual branches with bias and dropout.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/residual.h"

namespace choir::ops {

using kernels::Dropout;

/// Dropout with the run's key for `what` and the step's counter, of a tensor with these rows.
Dropout dropout_for(Runtime&, double p, std::string_view what, const kernels::RowMap& rows);

/// What a layer adds to the residual stream: dropout(delta [N, D] + bias [D]). `bias` may be empty.
struct Branch {
  Tensor delta, bias;
  Dropout dropout;
};

/// y [N, D] = x + dropout(delta + bias). `x` and `bias` may be empty.
Tensor residual(Runtime&, const Tensor& x, const Tensor& delta, const Tensor& bias, const Dropout& dropout);
/// The arguments of that kernel, which writes `y`; checked.
template <class T>
kernels::ResidualForward<T> residual_arguments(const Tensor& x, const Branch&, const Tensor& y);

/// ddelta [N, D] = the kept part of dy; the handle of dy itself if nothing is dropped.
Tensor residual_backward(Runtime&, const Tensor& dy, const Dropout& dropout);

}  // namespace choir::ops
