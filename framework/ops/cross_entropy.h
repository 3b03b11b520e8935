// The three local passes of a vocabulary-split cross-entropy; the reductions between them are the caller's.
#pragma once

#include "framework/core/runtime.h"

namespace choir::ops {

/// max [N] over the first num_tokens columns of logits [N, stride]
Tensor cross_entropy_max(Runtime&, const Tensor& logits, std::int64_t num_tokens);

/// Overwrites logits by exp(logits - max). Returns [2, N]: the sums, then the logits of the targets held here (else 0).
Tensor cross_entropy_sum(Runtime&, const Tensor& logits, const Tensor& max, const Tensor& targets,
                         std::int64_t num_tokens, std::int64_t first_token);

/// loss_sum (one f64) += the losses of the rows. With `gradient`: returns dlogits [N, stride] = scale * (p - onehot) in
/// the run's compute type, in the memory of `exps` if the types are equal; else an empty tensor. `right` (one f64, or
/// empty) += the rows whose target has the largest logit.
Tensor cross_entropy_gradient(Runtime&, const Tensor& exps, const Tensor& max, const Tensor& sum_and_target,
                              const Tensor& targets, const Tensor& loss_sum, const Tensor& right,
                              std::int64_t num_tokens, std::int64_t first_token, double scale, bool gradient);

}  // namespace choir::ops
