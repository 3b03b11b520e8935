// Tensor parallelism: each layer's weights split over the ranks of the tensor axis (Shoeybi et al. 2019, arXiv
// 1909.08053), and its sequence-parallel form (Korthikanti et al. 2022, arXiv 2205.05198).
//
//                     column-split weight         row-split weight
//   x ── enter ──▶ x ──────────────▶ y_r ──────────────▶ partial sums ── leave ──▶ y
//
//              forward                            backward
//   enter      identity       | all-gather        all-reduce | reduce-scatter
//   leave      all-reduce     | reduce-scatter    identity   | all-gather
//              whole rows     | split rows (sequence)
//
// With `sequence`, between leave and enter a rank holds Rows::share() of the flattened rows [N]; the last ranks' blocks
// may reach beyond N: those rows are padding, finite, and their gradients are zero.
#pragma once

#include <functional>
#include <string_view>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/ops/residual.h"
#include "framework/parallel/head_partition.h"

namespace choir {

/// Which share of the weights this rank holds; a layer needs it to declare its parameters.
struct TensorShare {
  std::int64_t rank = 0, size = 1;
  bool sequence = false;
  std::int64_t expert_rank = 0, expert_ranks = 1;  ///< of the ranks that share the experts
  /// For tensors that every rank holds whole and that are applied only to the rows held: norms, positions, row-split
  /// biases.
  TensorSum whole_tensor_sum() const { return sequence ? TensorSum::all : TensorSum::none; }
};

/// Dropout of the rows that this rank holds, by their place in the global batch; none unless `training`.
ops::Dropout row_dropout(const Context&, double p, std::string_view what);

/// x [rows held, D] -> [N, D]
Tensor enter(const Tensor& x, Context&, const char* label);

/// A collective that has been started: arithmetic that does not need its result continues meanwhile.
struct PendingTensor {
  Tensor tensor;
  Event done;
  /// The tensor, for work enqueued on the compute stream from now on.
  const Tensor& wait(Runtime&) const;
};

/// Starts the sum over ranks of dx [N, D]; the result has the rows held, [rows held, D]. Overlaps what is computed
/// next.
PendingTensor enter_backward(const Tensor& dx, Context&, const char* label);

/// partial [N, D] -> the sum over ranks, [rows held, D]
Tensor leave(const Tensor& partial, Context&, const char* label);

/// Writes rows [begin, end) of this rank's part of a product [N, D] to the second argument, [end - begin, D].
using MultiplyRows = std::function<void(const Slice& rows, const Tensor& to)>;

/// leave() of a product [N, D] of `rows` rows in `pieces` pieces of rows: while one is summed over the ranks, the next
/// is multiplied (Wang et al. 2023, doi 10.1145/3567955.3567959).
Tensor multiply_and_leave(std::int64_t pieces, std::int64_t rows, std::int64_t width, DType type,
                          const MultiplyRows& multiply, Context&, const char* label);

/// dy [rows held, D] -> [N, D]
Tensor leave_backward(const Tensor& dy, Context&, const char* label);

/// Makes the gradients of group `group` complete over the tensor axis, by the parameters' records: one packed
/// all-reduce, in which a rank contributes zeros for parts that it does not hold. Runs on the compute stream; call it
/// before the data-parallel reduction of the group.
void sum_shared_gradients(const ParameterStore&, int group, Context&);

}  // namespace choir
