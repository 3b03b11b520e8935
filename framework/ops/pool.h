// One row of each sequence: the mean of its rows, or one of them.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/pool.h"

namespace choir::ops {

/// means [B, D], f32 (f64 of f64): over the rows of x [N, D] at `positions`, as far as they are held here. `documents`
/// [B * T, 2] i32, if not empty: only those of the document of the first of these positions.
Tensor pool(Runtime&, const Tensor& x, const kernels::RowMap& rows, const kernels::Run& positions,
            const Tensor& documents = {});
/// dx [rows, D] of dmeans [B, D], of the type of dmeans.
Tensor pool_backward(Runtime&, const Tensor& dmeans, std::int64_t rows, const kernels::RowMap& map,
                     const kernels::Run& positions, const Tensor& documents = {});

}  // namespace choir::ops
