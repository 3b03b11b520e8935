// Masks of attention: a query sees the keys of one band around a diagonal. The only place that says what a mask means.
//
//   query i sees key j if first <= j - i <= last          0 <= i < q_length, 0 <= j < kv_length
//                      or if both are in the prefix       i < prefix_queries, j < prefix_keys
//
// i and j are the indices of one call. Causal, window, key/value cache, no mask, and a block of a longer sequence whose
// queries and keys begin at different positions are all bands. A band may be empty, or so far from the diagonal that
// some queries see no key.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace choir::kernels {

/// As an end of a band: there is no limit on this side.
inline constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

/// Any two numbers are a band; if first > last, no query sees a key.
struct Band {
  std::int64_t first = -unlimited, last = unlimited;
  std::int64_t prefix_queries = 0, prefix_keys = 0;  ///< of a band from the diagonal to either side; else 0
};

/// Every query sees every key.
constexpr Band full_band() { return {}; }

/// The queries are the last q_length of kv_length tokens. Each sees itself and the tokens before it: the last `window`
/// of them, itself included, or all if `window` is 0.
constexpr Band causal_band(std::int64_t q_length, std::int64_t kv_length, std::int64_t window = 0) {
  const std::int64_t offset = kv_length - q_length;  // query i is token i + offset
  return {window > 0 && window < kv_length ? offset - window + 1 : -unlimited, offset};
}

/// Both sides are seen: of the tokens of one sequence, each sees itself and window - 1 on either side, or all if
/// `window` is 0.
constexpr Band window_band(std::int64_t window = 0) { return window > 0 ? Band{1 - window, window - 1} : full_band(); }

/// `band`, in which the first `tokens` tokens of a sequence also see each other.
constexpr Band with_prefix(Band band, std::int64_t tokens) {
  band.prefix_queries = band.prefix_keys = tokens;
  return band;
}

/// The band between queries and keys of which the first stand at these positions, if `positions` is the band of all:
/// query i and key j stand at first_query + i and first_key + j.
constexpr Band band_between(Band positions, std::int64_t first_query, std::int64_t first_key) {
  const auto shifted = [&](std::int64_t end) {
    return end == unlimited || end == -unlimited ? end : end + first_query - first_key;
  };
  return {shifted(positions.first), shifted(positions.last), positions.prefix_queries - first_query,
          positions.prefix_keys - first_key};
}

/// The indices begin, begin + 1, ..., end - 1: none if begin >= end.
template <class Index>
struct IndexRange {
  Index begin, end;

  constexpr bool empty() const { return begin >= end; }
  constexpr Index count() const { return empty() ? 0 : end - begin; }
};

template <class Index>
constexpr IndexRange<Index> intersect(IndexRange<Index> a, IndexRange<Index> b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

/// What a band leaves of q_length queries and kv_length keys: what every kernel, on every device, asks about its mask.
/// `Index` is the type of the arithmetic. It must hold 2 (q_length + kv_length).
template <class Index>
struct VisiblePairs {
  using Range = IndexRange<Index>;

  /// The ends are within [-q_length, kv_length], so no sum of an end and an index overflows. If the band is empty:
  /// first = kv_length and last = -q_length, so every range of keys or queries below is empty.
  Index q_length, kv_length, first, last;
  Index prefix_queries, prefix_keys;  ///< 0 if there is no pair of the prefix

  constexpr VisiblePairs(Band band, std::int64_t queries, std::int64_t keys)
      : q_length(static_cast<Index>(queries)),
        kv_length(static_cast<Index>(keys)),
        first(static_cast<Index>(band.first > band.last ? keys : std::clamp(band.first, -queries, keys))),
        last(static_cast<Index>(band.first > band.last ? -queries : std::clamp(band.last, -queries, keys))),
        prefix_queries(static_cast<Index>(
            band.prefix_keys > 0 ? std::clamp(band.prefix_queries, std::int64_t{0}, queries) : std::int64_t{0})),
        prefix_keys(static_cast<Index>(band.prefix_queries > 0 ? std::clamp(band.prefix_keys, std::int64_t{0}, keys)
                                                               : std::int64_t{0})) {}

  constexpr bool sees(Index query, Index key) const {
    return query < q_length && key < kv_length &&
           ((key - query >= first && key - query <= last) || (query < prefix_queries && key < prefix_keys));
  }

  /// The keys that query i sees.
  constexpr Range keys_of(Index query) const { return keys_of(Range{query, query + 1}); }
  /// The keys that some of these queries see. There is no gap between them: the keys of query i + 1 are those of query
  /// i, one further on. begin < q_length; queries from q_length on do not count.
  constexpr Range keys_of(Range queries) const {
    const Range keys{std::max(Index{0}, queries.begin + first),
                     std::min(kv_length, std::min(queries.end, q_length) + last)};
    return queries.begin < prefix_queries ? Range{0, std::max(keys.end, prefix_keys)} : keys;
  }
  /// The queries that see key j.
  constexpr Range queries_of(Index key) const { return queries_of(Range{key, key + 1}); }
  /// The queries that see some of these keys. begin < kv_length; keys from kv_length on do not count.
  constexpr Range queries_of(Range keys) const {
    const Range queries{std::max(Index{0}, keys.begin - last),
                        std::min(q_length, std::min(keys.end, kv_length) - first)};
    return keys.begin < prefix_keys ? Range{0, std::max(queries.end, prefix_queries)} : queries;
  }

  /// Whether some query of a tile sees some key of it.
  constexpr bool any(Range queries, Range keys) const {
    return queries.begin < q_length && !intersect(keys_of(queries), keys).empty();
  }
  /// Whether every query of a tile sees every key of it.
  constexpr bool all(Range queries, Range keys) const {
    if (queries.end > q_length || keys.end > kv_length) return false;
    if (queries.begin < prefix_queries)
      return keys.end <= keys_of(queries.begin).end && keys.begin >= keys_of(queries.end - 1).begin;
    return keys.begin - (queries.end - 1) >= first && keys.end - 1 - queries.begin <= last;
  }

  /// Whether some query would see more keys if the band had no first, or no last.
  constexpr bool limited_before() const { return first > 1 - q_length; }
  constexpr bool limited_after() const { return last < kv_length - 1; }

  /// The number of pairs: those of the band, and those of the prefix that are not of the band.
  constexpr std::int64_t count() const {
    if (prefix_queries == 0) return count_of_band();
    const VisiblePairs<std::int64_t> in_prefix({first, last}, prefix_queries, prefix_keys);
    return count_of_band() + std::int64_t{prefix_queries} * prefix_keys - in_prefix.count();
  }

 private:
  /// Those with j - i <= last, without those with j - i < first.
  constexpr std::int64_t count_of_band() const {
    return std::max(std::int64_t{0}, count_up_to(last) - count_up_to(std::int64_t{first} - 1));
  }
  /// The pairs with j - i <= end. Query i has clamp(i + end + 1, 0, kv_length) of them.
  constexpr std::int64_t count_up_to(std::int64_t end) const {
    const auto sum_before = [this](std::int64_t n) -> std::int64_t {  // of clamp(m, 0, kv_length) over all m < n
      const std::int64_t rising = std::clamp(n, std::int64_t{0}, std::int64_t{kv_length});
      return rising * (rising - 1) / 2 + kv_length * std::max(std::int64_t{0}, n - kv_length);
    };
    return sum_before(end + 1 + q_length) - sum_before(end + 1);
  }
};

}  // namespace choir::kernels
