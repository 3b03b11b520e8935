// Softmax cross-entropy over a vocabulary of which this rank holds a slice.
//
//   statistics: of each slice, for each row r
//     max[r] = max_j logits[r, j]    sum[r] = sum_j exp(logits[r, j] - max[r])    target[r] = its logit if held, else 0
//   then, from those of all slices, with the largest max[r], the sum relative to it, and the target's logit
//     loss[r]    = log(sum[r]) + max[r] - target[r]
//     dlogits    = scale * (exp(logits - max) / sum - [j is the target])
//
// Logits are in the type of the run and become their gradient in place. All that is in between is in Accumulate<T>.
//
// Rows whose target is negative are padding: no loss, zero gradient. Columns from num_tokens up to the stride are
// padding of the storage: never read, and dlogits is zero there.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

template <class T>
struct CrossEntropyStatistics {
  const T* logits;              ///< [rows, stride], the first num_tokens of each row are used
  const std::int32_t* targets;  ///< [rows], global ids
  Accumulate<T>* statistics;    ///< [3, rows]: max, sum, target
  std::int64_t rows, num_tokens, stride, first_token;
};

template <class T>
struct CrossEntropy {
  T* logits;                                  ///< [rows, stride]; becomes dlogits if `gradient`
  const Accumulate<T>* statistics = nullptr;  ///< [slices, 3, rows]; null: the slice is the whole vocabulary, and they
                                              ///< are computed on the way, so that a row is read once
  std::int64_t slices = 0;
  const std::int32_t* targets;  ///< [rows], global ids
  double* losses;               ///< [rows]
  double* right = nullptr;      ///< [rows]: 1 if the target has the largest logit, else 0; null: not asked for
  std::int64_t rows, num_tokens, stride, first_token;
  double scale;  ///< usually 1 / target tokens of the global batch
  bool gradient;
};

/// sum += the losses, in an order that depends on their number alone.
struct SumOfLosses {
  const double* losses;  ///< [rows]
  std::int64_t rows;
  double* sum;
};

template <class T>
void cross_entropy_statistics(Cpu, const CrossEntropyStatistics<T>&);
template <class T>
void cross_entropy_statistics(Cuda, const CrossEntropyStatistics<T>&);
template <class T>
void cross_entropy(Cpu, const CrossEntropy<T>&);
template <class T>
void cross_entropy(Cuda, const CrossEntropy<T>&);
void sum_of_losses(Cpu, const SumOfLosses&);
void sum_of_losses(Cuda, const SumOfLosses&);

}  // namespace choir::kernels
