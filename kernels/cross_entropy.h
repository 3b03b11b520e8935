// Softmax cross-entropy over a vocabulary of which this rank holds a slice, in three passes over one buffer.
//
//   1. max[r]      = max_j logits[r, j]                                       then all-reduce (max) over the slices
//   2. logits      = exp(logits - max), sum[r] = sum_j, target[r] = logit of the target if held, else 0
//                                                                             then all-reduce (sum) over the slices
//   3. loss_sum   += sum_r log(sum[r]) + max[r] - target[r]
//      dlogits     = scale * (logits / sum - [j is the target])
//
// Rows whose target is negative are padding: no loss, zero gradient. Columns from num_tokens up to the stride are
// padding of the storage: never read, and dlogits is zero there.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

/// A is Accumulate<T> of the run: f32, or f64 in tests.
template <class A>
struct CrossEntropyMax {
  const A* logits;  ///< [rows, stride], the first num_tokens of each row are used
  A* max;           ///< [rows]
  std::int64_t rows, num_tokens, stride;
};

template <class A>
struct CrossEntropySum {
  A* logits;                    ///< [rows, stride]; overwritten by exp(logits - max)
  const A* max;                 ///< [rows]
  const std::int32_t* targets;  ///< [rows], global ids
  A* sum;                       ///< [rows]
  A* target;                    ///< [rows]
  std::int64_t rows, num_tokens, stride, first_token;
};

template <class T>
struct CrossEntropyGradient {
  const Accumulate<T>* exps;    ///< [rows, stride], from pass 2
  const Accumulate<T>* max;     ///< [rows]
  const Accumulate<T>* sum;     ///< [rows]
  const Accumulate<T>* target;  ///< [rows]
  const std::int32_t* targets;  ///< [rows], global ids
  T* dlogits = nullptr;         ///< [rows, stride]; may be exps if the types are equal; null: loss only
  double* loss_sum;             ///< one value; the rows are added in ascending order
  std::int64_t rows, num_tokens, stride, first_token;
  double scale;             ///< usually 1 / target tokens of the global batch
  double* right = nullptr;  ///< one value: += the rows whose target has the largest logit; null: not counted
};

template <class A>
void cross_entropy_max(Cpu, const CrossEntropyMax<A>&);
template <class A>
void cross_entropy_max(Cuda, const CrossEntropyMax<A>&);
template <class A>
void cross_entropy_sum(Cpu, const CrossEntropySum<A>&);
template <class A>
void cross_entropy_sum(Cuda, const CrossEntropySum<A>&);
template <class T>
void cross_entropy_gradient(Cpu, const CrossEntropyGradient<T>&);
template <class T>
void cross_entropy_gradient(Cuda, const CrossEntropyGradient<T>&);

}  // namespace choir::kernels
