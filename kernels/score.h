// Scores of attention: what the product of a query and a key becomes before the softmax. The only place that says what
// the options of a score mean.
//
//   x = scale q . k
//   x = soft_cap tanh(x / soft_cap)     with a soft cap: Gemma 2 (2024), arXiv 2408.00118
//   x = x - slope distance              with ALiBi: Press et al. 2021, arXiv 2108.12409
//
// distance is the number of positions between query and key, on either side. The slope of head h of n = 2^m heads is
// 2^(-8 (h + 1) / n). If n is not a power of two, the first heads are those of the largest power p < n, and the others
// have every second slope of 2 p heads, from the first one on.
#pragma once

#include <cstdint>

namespace choir::kernels {

/// Of all heads and pairs of one call of attention.
struct Score {
  double soft_cap = 0;           ///< 0: none
  std::int64_t alibi_heads = 0;  ///< heads of the whole layer, whose slopes differ; 0: no ALiBi
  std::int64_t first_head = 0;   ///< number of this call's head 0 in the whole layer
  std::int64_t diagonal = 0;     ///< query i and key i + diagonal stand at one position

  /// A score is scale q . k.
  constexpr bool is_product() const { return soft_cap == 0 && alibi_heads == 0; }
};

/// The scores of one call, if `layer` are those of the whole layer and of positions: head 0 is `first_head`, query i
/// stands at first_query + i and key j at first_key + j.
constexpr Score score_between(Score layer, std::int64_t first_head, std::int64_t first_query, std::int64_t first_key) {
  layer.first_head += first_head;
  layer.diagonal += first_query - first_key;
  return layer;
}

/// The slope of head `head` of `heads` is 2 to this power.
template <class Number>
constexpr Number alibi_exponent(std::int64_t head, std::int64_t heads) {
  std::int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  const std::int64_t place = head < power ? 2 * (head + 1) : 2 * (head - power) + 1;  // of 2 * power slopes
  return static_cast<Number>(-4 * place) / static_cast<Number>(power);
}

/// The scores of one head as kernels compute them: exponents of 2, so everything is times log2(e).
template <class Number>
struct HeadScore {
  Number cap = 0, inverse_cap = 0;  ///< cap 0: none
  Number slope = 0;                 ///< 0: no ALiBi

  /// `exp2` and `tanh` are the device's own.
  template <class Exp2>
  constexpr HeadScore(const Score& score, std::int64_t head, Exp2 exp2) {
    constexpr auto log2_of_e = static_cast<Number>(1.4426950408889634);
    if (score.soft_cap > 0) {
      cap = static_cast<Number>(score.soft_cap) * log2_of_e;
      inverse_cap = 1 / cap;
    }
    if (score.alibi_heads > 0)
      slope = exp2(alibi_exponent<Number>(score.first_head + head, score.alibi_heads)) * log2_of_e;
  }

  /// The score of scale q . k; `derivative` of the score by it. `distance` may be negative.
  template <class Tanh>
  constexpr Number operator()(Number product, Number distance, Number& derivative, Tanh tanh) const {
    derivative = 1;
    if (cap > 0) {
      const Number share = tanh(product * inverse_cap);
      product = cap * share;
      derivative = 1 - share * share;
    }
    return product - slope * (distance < 0 ? -distance : distance);
  }
};

}  // namespace choir::kernels
