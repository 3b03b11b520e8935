// Token and position embeddings; the vocabulary is split over the tensor axis.
//
//   x = dropout(token[id] + position[t])
#pragma once

#include <string>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/ops/residual.h"
#include "framework/parallel/tensor.h"

namespace choir {

/// A vocabulary slice: [begin, end) of the tokens, in a local table padded to `rows` (one common multiple of 8), so
/// that every rank's products have the same shape. Padding rows are zero and belong to no parameter.
struct VocabularySlice {
  std::int64_t begin = 0, end = 0, rows = 0;
  std::int64_t count() const { return end - begin; }
};
VocabularySlice vocabulary_slice(std::int64_t vocabulary, const TensorShare&);

/// Adds the [V, D] table `name` split by vocabulary_slice().
Weight* add_vocabulary_table(const std::string& name, std::int64_t vocabulary, std::int64_t width, float deviation,
                             const TensorShare&, ParameterStore&);

class Embedding {
 public:
  struct Saved {
    Tensor ids;  // [N] i32
  };

  /// positions == 0: no learned positions.
  Embedding(std::int64_t vocabulary, std::int64_t width, std::int64_t positions, double dropout, float deviation,
            const TensorShare&, ParameterStore&);

  /// ids [N] -> x [rows held, D]
  Tensor forward(const Tensor& ids, Saved&, Context&) const;
  void backward(const Tensor& dx, const Saved&, Context&) const;
  /// One sequence whose first id stands at `position`.
  Tensor generate(const Tensor& ids, std::int64_t position, Context&) const;

  const Weight* table() const { return token_; }  ///< [vocabulary_slice().rows, D], for a tied output head

 private:
  Tensor look_up(const Tensor& ids, Context&) const;
  ops::Dropout dropout(const Context&) const;

  VocabularySlice slice_;
  double dropout_;
  Weight* token_ = nullptr;
  Weight* position_ = nullptr;
};

}  // namespace choir
