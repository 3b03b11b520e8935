// Token and position embeddings.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/rows.h"

namespace choir::ops {

/// y [N, D]: the row of table [tokens held, D] for each id [N]; zeros for ids outside [first_token, first_token +
/// tokens).
Tensor embedding(Runtime&, const Tensor& ids, const Tensor& table, std::int64_t first_token);
/// dtable += dy, by token
void embedding_backward(Runtime&, const Tensor& ids, const Tensor& dy, const Tensor& dtable, std::int64_t first_token);

/// y [N, D] = x + table[position of the row]: that of `rows`, or those given, [N] i32, whose backward is that of
/// embedding().
Tensor add_position(Runtime&, const Tensor& x, const Tensor& table, const kernels::RowMap& rows,
                    const Tensor& positions = {});
/// dtable += dy, by position
void add_position_backward(Runtime&, const Tensor& dy, const Tensor& dtable, const kernels::RowMap& rows);

}  // namespace choir::ops
