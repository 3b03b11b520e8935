#include "kernels/attention_map.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace choir::kernels {

using Range = IndexRange<std::int64_t>;

bool is_computed(const AttentionHead& a, std::int64_t query) {
  return !a.lse || a.lse[query] < std::numeric_limits<float>::infinity() || std::isnan(a.lse[query]);
}

Range seen_keys(const AttentionHead& a, std::int64_t query) {
  const VisiblePairs<std::int64_t> pairs(a.band, a.length, a.kv_length);
  const Range keys = intersect(pairs.keys_of(query), {0, a.kv_length});
  return a.documents.separate ? intersect(keys, a.documents.keys_of<std::int64_t>(0, 0, query)) : keys;
}

/// p[keys] = scale q[query] . k
static void scores_of(const AttentionHead& a, std::int64_t query, const Range& keys, double scale, float* p) {
  const float* q = a.q + query * a.q_stride;
  std::fill(p + keys.begin, p + std::max(keys.begin, keys.end), 0.0f);
  for (std::int64_t e = 0; e < a.head_width; ++e) {  // so that the inner loop is one over keys, without a sum
    const float factor = q[e] * static_cast<float>(scale);
    const float* k = a.k_transposed + e * a.kv_length;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) p[j] += factor * k[j];
  }
}

/// sum a b, in independent sums for vectors.
static float dot(const float* a, const float* b, std::int64_t count) {
  constexpr std::int64_t lanes = 16;
  float sums[lanes] = {};
  std::int64_t e = 0;
  for (; e + lanes <= count; e += lanes)
    for (std::int64_t l = 0; l < lanes; ++l) sums[l] += a[e + l] * b[e + l];
  for (; e < count; ++e) sums[0] += a[e] * b[e];
  float sum = 0;
  for (const float lane : sums) sum += lane;
  return sum;
}

/// Of the delta rule.
static void weights_through_tokens(const AttentionHead& a, std::int64_t query, const Range& keys, float* w) {
  std::vector<float> x(static_cast<std::size_t>(a.head_width));
  const auto begin = [&] {
    for (std::int64_t e = 0; e < a.head_width; ++e)
      x[static_cast<std::size_t>(e)] = a.q[query * a.q_stride + e] * static_cast<float>(a.scale);
  };
  const auto decay = [&](std::int64_t j) {
    return static_cast<float>(std::exp(a.decay_sums[j] - (j > 0 ? a.decay_sums[j - 1] : 0)));
  };
  const auto read = [&](std::int64_t j, float before, float after) {
    const float* k = a.k + j * a.head_width;
    w[j] = before * a.rates[j] * dot(x.data(), k, a.head_width);
    for (std::int64_t e = 0; e < a.head_width; ++e) {
      float& to = x[static_cast<std::size_t>(e)];
      to = after * (before * to - w[j] * k[e]);
    }
  };
  begin();
  for (std::int64_t j = std::min(query + 1, keys.end) - 1; j >= keys.begin; --j) read(j, 1, decay(j));
  begin();
  for (std::int64_t j = query + 1; j < keys.end; ++j) read(j, decay(j), 1);
}

void linear_weights(const AttentionHead& a, std::int64_t query, float* w) {
  const Range keys = seen_keys(a, query);
  if (a.rates) return weights_through_tokens(a, query, keys, w);
  scores_of(a, query, keys, a.scale, w);
  for (std::int64_t j = keys.begin; j < keys.end; ++j)
    w[j] *= std::exp(static_cast<float>(-std::abs(a.decay_sums[query] - a.decay_sums[j])));
}

static RowSums linear_row(const AttentionHead& a, std::int64_t query, float* p) {
  const Range keys = seen_keys(a, query);
  linear_weights(a, query, p);
  float sum = 0;
  for (std::int64_t j = keys.begin; j < keys.end; ++j) {
    p[j] = std::abs(p[j]);
    sum += p[j];
  }
  for (std::int64_t j = keys.begin; j < keys.end && sum > 0; ++j) p[j] /= sum;
  return {.sink = 0, .log_sum = std::log(sum)};
}

RowSums attention_row(const AttentionHead& a, std::int64_t query, float* p) {
  if (a.decay_sums) return linear_row(a, query, p);
  constexpr auto log2_of_e = 1.4426950408889634;
  const Range keys = seen_keys(a, query);
  scores_of(a, query, keys, a.scale * log2_of_e, p);
  const HeadScore<float> score(a.score, a.head, [](float x) { return std::exp2(x); });
  const float lse = a.lse[query] * static_cast<float>(log2_of_e);
  for (std::int64_t j = keys.begin; j < keys.end; ++j) {
    float derivative = 0;
    const auto distance = static_cast<float>(j - query - a.score.diagonal);
    p[j] = std::exp2(score(p[j], distance, derivative, [](float x) { return std::tanh(x); }) - lse);
  }
  return {.sink = a.sink ? std::exp2(*a.sink * static_cast<float>(log2_of_e) - lse) : 0.0f, .log_sum = a.lse[query]};
}

}  // namespace choir::kernels
