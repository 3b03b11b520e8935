// The head of a classifier: one row of each sequence, and its class.
//
//   pooled = mean of x over the positions read, of separate documents those of the first document only; summed over
//            the ranks that hold some of them
//   loss   = sum over sequences of -log softmax(pooled W^T)[class]
#pragma once

#include "framework/nn/output_head.h"
#include "kernels/rows.h"

namespace choir {

class PooledHead {
 public:
  /// `table` has a row for each class; `positions` are read.
  PooledHead(const VocabularyTable& table, const kernels::Run& positions, const TensorShare&, ParameterStore&);

  /// OutputHead::loss() of the sequences: x [rows held, D], targets [B], not negative on the rank with the first
  /// position only. Returns dx [rows held, D] with `gradient`, else empty.
  Tensor loss(const Tensor& x, const Tensor& targets, const Tensor& loss_sum, const Tensor& right, double scale,
              bool gradient, Context&) const;

 private:
  kernels::Run positions_;
  OutputHead head_;
};

}  // namespace choir
