// The merge of attention over two sets of keys, from their outputs and log-sum-exps.
//
//   l     = log(exp(total_lse) + exp(part_lse))
//   total = exp(total_lse - l) total + exp(part_lse - l) part          total_lse = l
//
// A query that has seen no key has out = 0 and lse = -inf (kernels/attention.h), and merges like any other.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

template <class T>
struct AttentionMerge {
  std::int64_t batch, queries, heads, head_width;
  const T* part;                  ///< [batch * queries, heads * head_width]
  const Accumulate<T>* part_lse;  ///< [batch, heads, queries]
  Accumulate<T>* total;           ///< as part
  Accumulate<T>* total_lse;       ///< as part_lse
};

template <class T>
void attention_merge(Cpu, const AttentionMerge<T>&);
template <class T>
void attention_merge(Cuda, const AttentionMerge<T>&);

}  // namespace choir::kernels
