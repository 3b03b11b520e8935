// Layer norm and RMS norm.
#pragma once

#include "framework/ops/residual.h"

namespace choir::ops {

struct NormStatistics {
  Tensor mean;  ///< [N], empty for RMS norm
  Tensor rstd;  ///< [N]
};

/// y [N, D] = norm(x [N, D]) * weight [D] + bias [D]. `bias` may be empty. `rms`: no mean is taken off.
Tensor norm(Runtime&, const Tensor& x, const Tensor& weight, const Tensor& bias, bool rms, double epsilon,
            NormStatistics& statistics);

struct SumAndNorm {
  Tensor sum;   ///< [N, D]: x + branch, what residual() gives
  Tensor norm;  ///< [N, D]: of it
};
/// The residual stream after a branch, and the norm that follows, in one pass. x [N, D]; the rest as of norm().
SumAndNorm residual_norm(Runtime&, const Tensor& x, const Branch& branch, const Tensor& weight, const Tensor& bias,
                         bool rms, double epsilon, NormStatistics& statistics);

/// Returns dx = residual + gradient through the norm; dweight and dbias accumulate. `residual` may be empty.
/// `residual_sum` [D] (or empty) += the sum over rows of residual.
Tensor norm_backward(Runtime&, const Tensor& dy, const Tensor& x, const Tensor& weight,
                     const NormStatistics& statistics, const Tensor& residual, const Tensor& dweight,
                     const Tensor& dbias, const Tensor& residual_sum = {});

}  // namespace choir::ops
