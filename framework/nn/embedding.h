// Token and position embeddings; the vocabulary is split over the tensor axis.
//
//   x = dropout(token[id] + position[t] + text[n])
//
// position[t] = row[y] + column[x] of the square t of an image; text[n], if a sample has several texts: of text n.
#pragma once

#include <string>
#include <vector>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/ops/residual.h"
#include "framework/parallel/tensor.h"
#include "kernels/grid.h"

namespace choir {

/// A vocabulary slice: [begin, end) of the tokens, in a local table padded to `rows` (one common multiple of 8), so
/// that every rank's products have the same shape. Padding rows are zero and belong to no parameter.
struct VocabularySlice {
  std::int64_t begin = 0, end = 0, rows = 0;
  std::int64_t count() const { return end - begin; }
};
VocabularySlice vocabulary_slice(std::int64_t vocabulary, const TensorShare&);

/// A [vocabulary, width] table with a row for each token.
struct VocabularyTable {
  std::string name;
  std::int64_t vocabulary, width;
  float deviation;  ///< of the start values
};

/// The table split by vocabulary_slice(): the one of that name if the store has it, else a new one. `owned`: this
/// pipeline stage counts a new one.
Weight* vocabulary_table(const VocabularyTable&, const TensorShare&, ParameterStore&, bool owned = true);

/// Tables of learned positions: one with a row for each position; on a grid, one for its rows and one for its columns.
struct LearnedPositions {
  std::int64_t count = 0;  ///< 0: none are learned
  kernels::Grid grid{};
  std::int64_t texts = 1;  ///< of a sample, in turn (text_rows.h): if there are several, each has a learned row too
};

/// What an embedding adds to its rows: learned positions, the row of their text, and dropout.
class Places {
 public:
  /// `name`: of the embedding.
  Places(const std::string& name, const LearnedPositions&, std::int64_t width, float deviation, double dropout,
         const TensorShare&, ParameterStore&);

  /// x [rows held, D] -> [rows held, D]
  Tensor forward(const Tensor& x, Context&) const;
  Tensor backward(const Tensor& dx, Context&) const;

 private:
  enum class Of { position, row, column, text };
  struct Table {
    Of of;
    Weight* weight;
  };
  /// Which row of the table each of `rows` rows adds: [rows] i32; empty: that of its position.
  Tensor indices(const Table&, std::int64_t rows, Context&) const;

  std::string name_;
  double dropout_;
  kernels::Grid grid_;
  std::int64_t texts_;
  std::vector<Table> tables_;
};

class Embedding {
 public:
  struct Saved {
    Tensor ids;  // [N] i32
  };

  /// `name` is that of its learned positions, not of the table.
  Embedding(const std::string& name, const VocabularyTable&, const LearnedPositions&, double dropout,
            const TensorShare&, ParameterStore&);

  /// ids [N] -> x [rows held, D]. A negative id is padding, and has no token.
  Tensor forward(const Tensor& ids, Saved&, Context&) const;
  void backward(const Tensor& dx, const Saved&, Context&) const;

 private:
  VocabularySlice slice_;
  Weight* token_;
  Places places_;
};

}  // namespace choir
