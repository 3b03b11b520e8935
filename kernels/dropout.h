// Dropout: an element is kept with probability 1 - p and divided by 1 - p, or it becomes 0. It is dropped if its random
// word is below p * 2^32. The word is a function of the element's place in the global batch, not of the rank that
// computes it:
//
//   feature of a row             philox_word(key, step, rows.global_row(row) * width + feature)
//   probability of attention     word k % 4 of philox(key, row * ceil(length / 4) + k / 4, step), with
//                                row = (sample * heads + head) * length + query
//
// Sample, head, query and k, the number of a key, are those of the whole batch, layer and sequence. `step` is read from
// StepScalars.
#pragma once

#include <cstdint>

#include "kernels/rows.h"
#include "kernels/step_scalars.h"

namespace choir::kernels {

/// p * 2^32 rounded up: an element is dropped if its random word is below this.
constexpr std::uint32_t drop_below(double p) {
  const double exact = p * 4294967296.0;
  const auto floor = static_cast<std::uint64_t>(exact);
  const std::uint64_t ceiling = static_cast<double>(floor) < exact ? floor + 1 : floor;
  return ceiling > 0xffffffffu ? 0xffffffffu : static_cast<std::uint32_t>(ceiling);
}

/// Of rows. p == 0 keeps everything and reads neither key nor scalars.
struct Dropout {
  double p = 0;
  std::uint64_t key = 0;  ///< made from (seed, what)
  const StepScalars* scalars = nullptr;
  RowMap rows{};  ///< of the tensor
};

/// Of the probabilities of one call of attention; p == 0 as above.
struct AttentionDropout {
  double p = 0;
  std::uint64_t key = 0;
  const StepScalars* scalars = nullptr;
  std::int64_t heads = 1, length = 1;  ///< of the whole layer; positions of a whole sequence
  std::int64_t first_sample = 0;       ///< number of this call's sequence 0 in the global batch
  std::int64_t first_head = 0, first_query = 0, first_key = 0;  ///< likewise, in the layer and in the sequence

  struct Word {
    std::uint64_t block;
    int number;  ///< 0 to 3
  };
  constexpr Word word_of(std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t k) const {
    const std::int64_t row = ((first_sample + batch) * heads + first_head + head) * length + first_query + query;
    const std::int64_t position = first_key + k;
    return {static_cast<std::uint64_t>(row * ((length + 3) / 4) + position / 4), static_cast<int>(position % 4)};
  }
};

/// Dropout of one call, if `layer` is that of the whole layer: score_between() of kernels/score.h.
constexpr AttentionDropout dropout_between(AttentionDropout layer, std::int64_t first_head, std::int64_t first_query,
                                           std::int64_t first_key) {
  layer.first_head += first_head;
  layer.first_query += first_query;
  layer.first_key += first_key;
  return layer;
}

}  // namespace choir::kernels
