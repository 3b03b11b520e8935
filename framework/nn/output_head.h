// The output head: logits over the vocabulary, and their cross-entropy. No rank ever holds all logits, and no rank
// holds its own logits for more than one chunk of rows: loss and gradient of a chunk are computed together, so that
// what remains is dx. That is why loss() is forward and backward in one.
//
//   logits = x W^T                       W [V, D] split by vocabulary; often the token embedding (tied)
//   loss   = sum over target tokens of -log softmax(logits)[target]
#pragma once

#include "framework/nn/embedding.h"

namespace choir {

class OutputHead {
 public:
  /// `table`: the embedding's (tied), or a table of its own.
  OutputHead(const VocabularyTable& table, const TensorShare&, ParameterStore&);

  /// Adds the losses of the rows to loss_sum (one f64), and the number of rows whose target has the largest logit to
  /// `right` (one f64, or empty). x [rows held, D], targets [N] i32, negative: not counted.
  /// With `gradient`: returns dx [rows held, D] of scale * loss and accumulates the weight's gradient; else empty.
  Tensor loss(const Tensor& x, const Tensor& targets, const Tensor& loss_sum, const Tensor& right, double scale,
              bool gradient, Context&) const;

  /// [rows, V]: all logits on every rank, f32 (f64 in tests). For generation: few rows.
  Tensor logits(const Tensor& x, Context&) const;

  /// The logits of N rows on this rank, and the columns of all ranks.
  struct Logits {
    std::int64_t rows, columns, vocabulary;
  };
  /// Rows of one chunk, for rows of `width`: about 2^20 logits, and at least 8192 rows on a GPU; on a CPU 256 to 1024
  /// rows, as many as let the logits of all ranks take six times the rows, or 2/3 of the width if that is more.
  static std::int64_t chunk_rows(const Logits& logits, std::int64_t width, DeviceKind device);

 private:
  std::int64_t vocabulary_;
  VocabularySlice slice_;
  Weight* weight_ = nullptr;
};

}  // namespace choir
