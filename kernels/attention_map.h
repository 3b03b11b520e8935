// The probabilities of one head of attention as rows of a matrix, for people who look into the head. Kernels of
// attention never have this matrix in memory; they save the log-sum-exp of each row, which is all that is missing:
//
//   p[i, j] = exp(score(scale q[i] . k[j]) - lse[i])    for the keys j that query i sees, else 0
//   sink[i] = exp(logit - lse[i])                       with attention sinks (kernels/attention_sink.h), else 0
//
// A row and its sink sum to 1 if the log-sum-exp is that of the same scores. Arithmetic of the host, in f32.
//
// Linear attention weighs what it reads too, without a softmax (kernels/linear_attention.h): token i has w[i, j] =
// scale (q[i] . k[j]) exp(-|c_i - c_j|) of v[j], where c sums the log_decay. These weights have either sign. Their
// shares are
//
//   p[i, j] = |w[i, j]| / sum_j |w[i, j]|
//
// By the delta rule (kernels/delta_attention.h) a token between i and j has taken out of the state some of what j put
// there. So x [E], at first scale q[i], goes from i back through what the tokens do to a state that it reads:
//
//   w[i, j] = b_j (x . k_j)
//   x       = a_j (x - b_j (x . k_j) k_j)    a_j = exp(c_j - c_{j-1})
//
// and forth from i + 1 on through the tokens behind i: x = a_j x comes before w[i, j], x - b_j (x . k_j) k_j after it.
#pragma once

#include <cstdint>

#include "kernels/band.h"
#include "kernels/documents.h"
#include "kernels/score.h"

namespace choir::kernels {

/// One head, and the whole sequences of its queries and of its keys. Query i and key i stand at position i.
struct AttentionHead {
  std::int64_t length = 0, kv_length = 0, head_width = 0;
  Band band{};
  Score score{};             ///< of which this is head `head`
  std::int64_t head = 0;     ///< in the layer
  double scale = 1;          ///< usually 1 / sqrt(head_width)
  Documents documents{};     ///< of one sequence; only queries have ranges here
  const float* q = nullptr;  ///< [length, head_width], rows `q_stride` elements apart
  std::int64_t q_stride = 0;
  const float* k_transposed = nullptr;  ///< [head_width, kv_length]; not by the delta rule
  const float* lse = nullptr;           ///< [length]; infinite: the head does not compute the query
  const float* sink = nullptr;          ///< the head's logit; null: none
  const double* decay_sums = nullptr;   ///< c [length], of linear attention, which has no lse; null: softmax
  const float* k = nullptr;             ///< [kv_length, head_width], by the delta rule: at unit length, as q then is
  const float* rates = nullptr;         ///< b [length], likewise; null: not by the delta rule
};

/// False if tokens choose heads, and this one is not the query's.
bool is_computed(const AttentionHead&, std::int64_t query);

/// The keys that a query sees: there is no gap between them.
IndexRange<std::int64_t> seen_keys(const AttentionHead&, std::int64_t query);

/// w[seen_keys()] = row `query`, of linear attention: what the head reads is the sum over j of w[query, j] v[j].
void linear_weights(const AttentionHead&, std::int64_t query, float* w);

/// p[seen_keys()] = row `query`; other elements of p [kv_length] stay as they are.
struct RowSums {
  float sink = 0;     ///< the share of the sink
  float log_sum = 0;  ///< of what p are the shares of, the logarithm of the sum: lse[query], or that of linear weights
};
RowSums attention_row(const AttentionHead&, std::int64_t query, float* p);

}  // namespace choir::kernels
