// Softmax cross-entropy of a vocabulary that may be split; what moves between the ranks is the caller's.
#pragma once

#include "framework/core/runtime.h"

namespace choir::ops {

/// Of the first num_tokens columns of logits [N, stride], which are the tokens from first_token on: [3, N] the largest
/// logits, the sums of exp(logits - these), and the logits of the targets held here (else 0). targets [N] i32,
/// negative: not counted.
Tensor cross_entropy_statistics(Runtime&, const Tensor& logits, const Tensor& targets, std::int64_t num_tokens,
                                std::int64_t first_token);

/// losses [N] f64 = -log softmax(logits)[target]. `statistics` [3 slices, N] are those of all slices, one after
/// another; if it is empty, the slice is the whole vocabulary. `right` ([N] f64, or empty) = 1 where the target has the
/// largest logit, else 0. With `gradient` the logits become scale * (p - onehot), in place.
void cross_entropy(Runtime&, const Tensor& logits, const Tensor& statistics, const Tensor& targets,
                   const Tensor& losses, const Tensor& right, std::int64_t num_tokens, std::int64_t first_token,
                   double scale, bool gradient);

/// sum (one f64) += the losses [N] f64
void sum_of_losses(Runtime&, const Tensor& losses, const Tensor& sum);

}  // namespace choir::ops
