// One row of each sequence: the mean of its rows, or one of them.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/pool.h"

namespace choir::ops {

/// sums [B, D], f32 (f64 of f64): of the rows of x [N, D] at `positions`, times `factor`; of the rows held here.
Tensor pool(Runtime&, const Tensor& x, const kernels::RowMap& rows, const kernels::Run& positions, double factor);
/// dx [rows, D] of dsums [B, D], of the type of dsums.
Tensor pool_backward(Runtime&, const Tensor& dsums, std::int64_t rows, const kernels::RowMap& map,
                     const kernels::Run& positions, double factor);

}  // namespace choir::ops
