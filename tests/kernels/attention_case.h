// What the tests of attention share, on the CPU and on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/philox.h"

namespace choir::kernels::tests {

struct AttentionCase {
  const char* name;
  std::int64_t batch, q_length, kv_length, heads, kv_heads, width, group_size, group_offset;
  Band band;
};

/// The definition of a mask: what query i of head h of sequence b sees.
inline bool sees(const AttentionShape& s, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  const bool of_band =
      (s.band.first <= j - i && j - i <= s.band.last) || (i < s.band.prefix_queries && j < s.band.prefix_keys);
  if (!of_band || !s.documents.separate) return of_band;
  if (s.documents.heads > 1) {
    const DocumentRange keys = s.documents.ranges[(b * s.heads + h) * s.documents.length + i];
    return keys.begin <= s.documents.first_key + j && s.documents.first_key + j < keys.end;
  }
  const auto begin_of = [&](std::int64_t position) {
    return s.documents.ranges[b * s.documents.length + position].begin;
  };
  return begin_of(s.documents.first_query + i) == begin_of(s.documents.first_key + j);
}

/// Sequences of `length` positions with borders at random, of documents of `mean` tokens or so.
inline std::vector<DocumentRange> random_documents(std::int64_t batch, std::int64_t length, std::uint32_t mean) {
  std::mt19937 random(static_cast<unsigned>(length) + mean);
  std::vector<DocumentRange> ranges;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t begin = 0, end = 0; begin < length; begin = end) {
      do ++end;
      while (end < length && random() % mean != 0);
      ranges.resize(static_cast<std::size_t>(b * length + end),
                    {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
    }
  return ranges;
}

/// Documents of heads whose queries stand at positions of their own, ascending: kernels/head_routing.h. Of the `keys`
/// positions some heads have a third, some two thirds, as far as there are slots, some none and some all; of one in
/// `rarity` positions.
struct HeadRanges {
  std::vector<DocumentRange> ranges;
  Documents documents;
};
inline HeadRanges ranges_of_heads(std::int64_t batch, std::int64_t heads, std::int64_t slots, std::int64_t keys,
                                  std::int64_t window, std::uint32_t rarity = 1) {
  std::mt19937 random(static_cast<unsigned>(slots * 1000 + keys));
  HeadRanges all;
  for (std::int64_t n = 0; n < batch * heads; ++n) {
    std::vector<std::int64_t> positions;
    for (std::int64_t position = 0; position < keys; ++position)
      if (static_cast<std::int64_t>(random() % (3 * rarity)) < (n + 1) % 4 && std::ssize(positions) < slots)
        positions.push_back(position);
    const auto index = [](std::int64_t i) { return static_cast<std::int32_t>(i); };
    const auto first_of = [&](std::int64_t position) {
      return window == 0 ? 0 : std::max<std::int64_t>(0, position - window + 1);
    };
    const std::int64_t last = positions.empty() ? -1 : positions.back();
    for (const std::int64_t position : positions)
      all.ranges.push_back({index(slots + first_of(position)), index(slots + position + 1)});
    for (std::int64_t i = std::ssize(positions); i < slots; ++i)
      all.ranges.push_back({index(slots + last + 1), index(slots + last + 1)});
    for (std::int64_t key = 0; key < keys; ++key) {
      const auto before = std::count_if(positions.begin(), positions.end(), [&](std::int64_t p) { return p < key; });
      const auto until =
          std::count_if(positions.begin(), positions.end(), [&](std::int64_t p) { return first_of(p) <= key; });
      all.ranges.push_back({index(before), index(until)});
    }
  }
  all.documents = {true, all.ranges.data(), slots + keys, 0, slots, heads};
  return all;
}

/// Of ranges_of_heads().
struct HeadRangesCase {
  const char* name;
  std::int64_t slots, keys, window;
  std::uint32_t rarity;
};
inline constexpr HeadRangesCase head_ranges_cases[] = {
    {"a head's rows", 60, 130, 0, 1},
    {"a head's rows, with windows", 100, 300, 9, 1},
    {"few rows, with keys between their windows that none sees", 50, 400, 9, 15},
    {"more slots than rows", 150, 70, 0, 1},
};

/// A call of attention on parts of longer sequences.
struct DocumentCase {
  const char* name;
  std::int64_t q_length, kv_length, length, first_query, first_key;
  std::uint32_t mean;
  Band band;
};
inline constexpr DocumentCase document_cases[] = {
    {"causal, short documents", 130, 130, 130, 0, 0, 5, causal_band(130, 130)},
    {"causal, long documents", 200, 200, 200, 0, 0, 70, causal_band(200, 200)},
    {"both sides", 150, 150, 150, 0, 0, 40, full_band()},
    {"a window", 150, 150, 150, 0, 0, 30, causal_band(150, 150, 9)},
    {"one document", 70, 70, 70, 0, 0, 100000, causal_band(70, 70)},
    {"a cache", 3, 120, 130, 117, 0, 20, causal_band(3, 120)},
    {"a ring's block of earlier keys", 70, 60, 200, 110, 40, 50, {-unlimited, 70}},
    {"a ring's block of later keys, both sides", 60, 70, 200, 40, 100, 50, full_band()},
    {"a ring's block with nothing in common", 30, 40, 200, 150, 0, 3, full_band()},
    {"a prefix", 100, 100, 100, 0, 0, 30, with_prefix(causal_band(100, 100), 20)},
};

/// Bands of every sort, around the edges of the kernels' tiles (16 and 64 rows on a GPU; 48 queries, 96 keys, and 6 or
/// 8 rows on a CPU). {1, 0} and {unlimited, -unlimited} are empty.
struct BandCase {
  const char* name;
  std::int64_t q_length, kv_length;
  Band band;
};
inline constexpr BandCase band_cases[] = {
    {"empty: first > last", 70, 70, {1, 0}},
    {"empty: no end is in the square", 50, 70, {unlimited, -unlimited}},
    {"empty: the keys are too late", 70, 50, {70, unlimited}},
    {"empty: just beyond the last key", 17, 100, {100, 200}},
    {"empty: just before the first key", 100, 17, {-200, -100}},
    {"the first query sees the last key", 70, 50, {49, 1000}},
    {"the last query sees the first key", 70, 50, {-1000, -69}},
    {"earlier keys only", 70, 70, {-unlimited, -1}},
    {"later keys only", 70, 70, {1, unlimited}},
    {"the diagonal", 40, 70, {0, 0}},
    {"a diagonal right of it", 70, 97, {33, 33}},
    {"a diagonal left of it", 97, 70, {-33, -33}},
    {"right of the diagonal", 65, 129, {20, 60}},
    {"right of the diagonal, the last queries see nothing", 130, 70, {15, 31}},
    {"left of the diagonal, the first queries see nothing", 70, 130, {-50, -17}},
    {"a band from key to key of the tiles", 64, 128, {16, 63}},
    {"a ring's block of earlier keys: all are seen", 50, 70, {-unlimited, 90}},
    {"a ring's block of earlier keys at the far end of a window", 70, 70, {40, 160}},
    {"a ring's block of later keys: none is seen", 70, 70, {-unlimited, -70}},
    {"a ring's own block that ends after its queries", 30, 70, {-unlimited, 0}},
    {"one query, no limit before", 1, 100, {-unlimited, 55}},
    {"one query, no limit after", 1, 100, {55, unlimited}},
    {"one key", 100, 1, {-60, -20}},
    {"a prefix", 130, 130, with_prefix(causal_band(130, 130), 70)},
    {"a prefix and a window", 130, 130, with_prefix(causal_band(130, 130, 9), 40)},
    {"a ring's block with a part of the prefix", 70, 50, {-unlimited, 20, 30, 45}},
    {"the longest ends", 20, 20, {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}},
};

/// The definition of a score: of query i and key j of head h, from scale q . k. The slopes are those of the paper, by
/// its own recursion.
inline double alibi_slope(std::int64_t head, std::int64_t heads) {
  std::int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  if (head >= power) return alibi_slope(2 * (head - power), 2 * power);
  return std::pow(2.0, -8.0 * static_cast<double>(head + 1) / static_cast<double>(power));
}
struct DefinedScore {
  double value, derivative;  ///< the derivative is by the product
  double magnitude;          ///< of what is added to the product
};
inline DefinedScore defined_score(const Score& s, double product, std::int64_t h, std::int64_t i, std::int64_t j) {
  DefinedScore score{product, 1, 0};
  if (s.soft_cap > 0) {
    score.value = s.soft_cap * std::tanh(product / s.soft_cap);
    score.derivative = 1 - std::pow(std::tanh(product / s.soft_cap), 2);
  }
  if (s.alibi_heads > 0)
    score.magnitude = alibi_slope(s.first_head + h, s.alibi_heads) * static_cast<double>(std::abs(j - i - s.diagonal));
  score.value -= score.magnitude;
  return score;
}

/// Scores of every sort.
struct ScoreCase {
  const char* name;
  Score score;
};
inline constexpr ScoreCase score_cases[] = {
    {"soft cap", {.soft_cap = 1.5}},
    {"a wide soft cap", {.soft_cap = 50}},
    {"ALiBi of eight heads", {.alibi_heads = 8}},
    {"ALiBi, later heads of eleven, in a ring's block", {.alibi_heads = 11, .first_head = 6, .diagonal = 90}},
    {"both, keys after the queries", {.soft_cap = 3, .alibi_heads = 3, .diagonal = -70}},
};

/// The definition of dropout: the factor of the probability of query i and key j.
inline double drop_factor(const AttentionShape& s, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  const AttentionDropout& d = s.dropout;
  if (d.p == 0) return 1;
  const std::int64_t row = ((d.first_sample + b) * d.heads + d.first_head + h) * d.length + d.first_query + i;
  const std::int64_t key = d.first_key + j, blocks_of_row = (d.length + 3) / 4;
  const PhiloxBlock words = philox(d.key, static_cast<std::uint64_t>(row * blocks_of_row + key / 4), d.scalars->step);
  return words[static_cast<std::size_t>(key % 4)] * 0x1p-32 < d.p ? 0 : 1 / (1 - d.p);
}

/// Whole sequences, and parts of longer ones that begin anywhere.
struct DropoutCase {
  const char* name;
  std::int64_t q_length, kv_length;
  AttentionDropout dropout;
  Band band;
};
inline constexpr StepScalars dropout_step{.step = 7};
inline constexpr DropoutCase dropout_cases[] = {
    {"causal", 70, 70, {0.1, 11, &dropout_step, 3, 70}, causal_band(70, 70)},
    {"both sides, more dropped than kept", 50, 97, {0.7, 12, &dropout_step, 3, 97}, full_band()},
    {"later heads, in a ring's block", 61, 53, {0.4, 13, &dropout_step, 11, 203, 5, 6, 102, 41}, {-unlimited, 61}},
    {"a window", 100, 100, {0.25, 14, &dropout_step, 3, 101, 1, 0, 1, 1}, causal_band(100, 100, 9)},
};

/// k and v are in one fused buffer; between the rows are so many elements that a kernel must not touch.
inline AttentionShape shape_of(const AttentionCase& c, std::int64_t q_gap, std::int64_t kv_gap, std::int64_t out_gap) {
  return {.batch = c.batch,
          .q_length = c.q_length,
          .kv_length = c.kv_length,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_width = c.width,
          .group_size = c.group_size,
          .group_offset = c.group_offset,
          .q_stride = c.heads * c.width + q_gap,
          .k_stride = 2 * c.kv_heads * c.width + kv_gap,
          .v_stride = 2 * c.kv_heads * c.width + kv_gap,
          .out_stride = c.heads * c.width + out_gap,
          .band = c.band,
          .scale = 1 / std::sqrt(static_cast<double>(c.width))};
}

}  // namespace choir::kernels::tests
