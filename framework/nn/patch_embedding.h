// The stem of a model of images: each square of pixels becomes a row. The values of a square are split over the tensor
// axis.
//
//   x = dropout(sum over values p of patch[p] * table[p] + position[t])
#pragma once

#include "framework/nn/embedding.h"

namespace choir {

class PatchEmbedding {
 public:
  static constexpr bool backward_reads_values = false;
  struct Saved {
    Tensor patches;  // [N, table rows held]: the values held here, zeros behind them
  };

  /// `table` has a row for each value of a square.
  PatchEmbedding(const VocabularyTable& table, const LearnedPositions&, double dropout, const TensorShare&,
                 ParameterStore&);

  /// patches [N, values] -> x [rows held, D]
  Tensor forward(const Tensor& patches, Saved&, Context&) const;
  void backward(const Tensor& dx, const Saved&, Context&) const;

 private:
  VocabularySlice slice_;
  Weight* table_;
  Places places_;
};

}  // namespace choir
