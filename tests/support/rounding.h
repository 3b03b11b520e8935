// How far two correct programs may be apart that add the same numbers in another order.
//
// Error model. A loss or gradient is the end of a chain of k rounded steps, each a sum of at most n terms. Roundings of
// relative size u are independent, so a sum of n terms is off by about u sqrt(n) of its size and k sums in a row by
// u sqrt(k n). Four standard deviations, and both sides err:
//
//   |a - b| <= 4 sqrt(2 k n) u scale,      scale: the tensor's largest element
//
// k counts the steps of the longest way. Forward through a block there are 13: norm, qkv, rotary, scores, softmax, mix,
// out, residual, norm, up, activation, down, residual. Backward meets each twice: in the gradient that flows through it
// and in the saved value that it is multiplied by. Around the blocks there are embedding, position, final norm and
// head, forward and back. n is the largest of the widths and of the rows of the global batch.
//
// In bf16 runs sums are f32 and only their results are rounded to bf16: n = 1, u = 2^-8.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "framework/core/dtype.h"
#include "framework/model/model_config.h"

namespace choir::tests {

constexpr double unit_roundoff(DType type) {
  if (type == DType::f64) return 0x1p-53;
  return type == DType::bf16 ? 0x1p-8 : 0x1p-24;
}

/// The bound above without `scale`, for gradients of `rows` rows.
inline double gradient_bound(const ModelConfig& c, std::int64_t rows, DType type) {
  const auto steps = static_cast<double>(3 * 13 * c.layers + 3 * 4);
  const auto longest = static_cast<double>(
      std::max({c.width, c.feed_forward_width(), c.attention.heads * c.head_width(), c.vocabulary, rows}));
  return 4 * std::sqrt(2 * steps * (type == DType::bf16 ? 1 : longest)) * unit_roundoff(type);
}

/// The same for the loss, which is a mean over many rows and has seen a third of the steps.
inline double loss_bound(const ModelConfig& c, std::int64_t rows, DType type) {
  return gradient_bound(c, rows, type) / std::sqrt(3.0);
}

}  // namespace choir::tests
