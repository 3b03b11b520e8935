// How CPU attention divides its work: the blocks, the memory and the part of each thread.
//
// A unit of work is one block of queries of one head. Units are ordered by batch, head, block, and each thread takes a
// contiguous part of them, of nearly equal cost. The query heads that read one key/value head form a group; the units
// of a group are neighbours, so dk and dv of a group are sums over the units of one thread, or of few threads in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/attention.h"
#include "kernels/cpu/carver.h"
#include "kernels/cpu/parallel.h"

namespace choir::kernels::cpu {

/// Queries and keys in a block. Both are multiples of every register tile (6 or 8 rows, 2 vectors of at most 16 lanes);
/// a block of queries, of keys and of scores is 15 to 25 KB in f32 at head width 64, near the first cache.
inline constexpr std::int64_t query_block = 48, key_block = 96;

inline constexpr double log2_of_e = 1.4426950408889634, log_of_2 = 0.6931471805599453;

using Pairs = VisiblePairs<std::int64_t>;
using Range = Pairs::Range;

inline constexpr std::int64_t num_blocks(std::int64_t length, std::int64_t block) {
  return (length + block - 1) / block;
}

// ---- Pairs

/// From the first to the last of range_of(i), i in `indices`, without gaps.
template <class RangeOf>
Range cover(Range indices, const RangeOf& range_of) {
  Range all{std::numeric_limits<std::int64_t>::max(), 0};
  for (std::int64_t i = indices.begin; i < indices.end; ++i) {
    const Range range = range_of(i);
    if (!range.empty()) all = {std::min(all.begin, range.begin), std::max(all.end, range.end)};
  }
  return all;
}

/// What one head of a sequence sees: pairs of the band, of those the pairs of one document if documents are separate.
struct SequencePairs {
  const Pairs pairs;
  const Documents& documents;
  const std::int64_t batch, head;

  SequencePairs(const AttentionShape& s, std::int64_t sequence, std::int64_t query_head)
      : pairs(visible_pairs(s)), documents(s.documents), batch(sequence), head(query_head) {}

  /// As in VisiblePairs.
  Range keys_of(std::int64_t query) const {
    const Range keys = pairs.keys_of(query);
    return documents.separate ? intersect(keys, documents.keys_of(batch, head, query)) : keys;
  }
  Range keys_of(Range queries) const {
    if (!documents.separate) return pairs.keys_of(queries);
    return cover({queries.begin, std::min(queries.end, pairs.q_length)}, [&](std::int64_t i) { return keys_of(i); });
  }
  Range queries_of(std::int64_t key) const {
    const Range queries = pairs.queries_of(key);
    return documents.separate ? intersect(queries, documents.queries_of(batch, head, key)) : queries;
  }
  Range queries_of(Range keys) const {
    if (!documents.separate) return pairs.queries_of(keys);
    return cover({keys.begin, std::min(keys.end, pairs.kv_length)}, [&](std::int64_t j) { return queries_of(j); });
  }
  bool all(Range queries, Range keys) const {
    if (!pairs.all(queries, keys)) return false;
    const auto sees_all = [&](std::int64_t query) {  // if the first and the last query do, so do those between them
      return intersect(documents.keys_of(batch, head, query), keys).count() == keys.count();
    };
    return !documents.separate || (sees_all(queries.begin) && sees_all(queries.end - 1));
  }
};

// ---- Units, groups, parts

struct Unit {
  std::int64_t batch, head, first_query;
};

inline Unit unit_at(const AttentionShape& s, std::int64_t unit) {
  const std::int64_t blocks = num_blocks(s.q_length, query_block), head = unit / blocks;
  return {head / s.heads, head % s.heads, unit % blocks * query_block};
}

inline std::int64_t kv_head_of(const AttentionShape& s, std::int64_t head) {
  return (head + s.group_offset) / s.group_size;
}

/// The units that read key/value head `kv_head` of `batch`; empty if no query head does.
inline Range units_of_group(const AttentionShape& s, std::int64_t batch, std::int64_t kv_head) {
  const std::int64_t blocks = num_blocks(s.q_length, query_block);
  const Range heads = intersect<std::int64_t>(
      {0, s.heads}, {kv_head * s.group_size - s.group_offset, (kv_head + 1) * s.group_size - s.group_offset});
  if (heads.empty()) return {0, 0};
  return {(batch * s.heads + heads.begin) * blocks, (batch * s.heads + heads.end) * blocks};
}

/// part_of_units() of heads with ranges of their own: the keys that a unit sees are those from the first begin to the
/// last end.
inline Part part_of_unequal_units(const AttentionShape& s, int threads, int index) {
  const std::int64_t units = s.batch * s.heads * num_blocks(s.q_length, query_block);
  const auto cost = [&](std::int64_t number) {
    const Unit unit = unit_at(s, number);
    const std::int64_t last = std::min(unit.first_query + query_block, s.q_length) - 1;
    const auto first_keys = s.documents.keys_of(unit.batch, unit.head, unit.first_query);
    const Range keys{first_keys.begin, s.documents.keys_of(unit.batch, unit.head, last).end};
    return keys.count() + key_block / 3;
  };
  std::int64_t all = 0, before = 0, unit = 0;
  for (std::int64_t u = 0; u < units; ++u) all += cost(u);
  const auto boundary = [&](std::int64_t part) {
    for (; unit < units && (before + cost(unit) / 2) * threads < all * part; ++unit) before += cost(unit);
    return unit;
  };
  const std::int64_t begin = boundary(index);
  return {begin, boundary(index + 1), index};
}

/// The units of thread `index` of `threads`. A unit costs as many keys as it sees, and a third of a block for the rest.
inline Part part_of_units(const AttentionShape& s, int threads, int index) {
  if (s.documents.heads > 1) return part_of_unequal_units(s, threads, index);
  const std::int64_t blocks = num_blocks(s.q_length, query_block);
  const Pairs pairs = visible_pairs(s);
  const auto cost = [&](std::int64_t block) {
    return pairs.keys_of(Range{block * query_block, (block + 1) * query_block}).count() + key_block / 3;
  };
  std::int64_t head_cost = 0;
  for (std::int64_t block = 0; block < blocks; ++block) head_cost += cost(block);
  const auto boundary = [&](std::int64_t part) -> std::int64_t {
    if (head_cost == 0) return 0;
    const std::int64_t before = s.batch * s.heads * head_cost * part / threads, head = before / head_cost;
    std::int64_t rest = before % head_cost, block = 0;
    while (block < blocks && rest >= cost(block)) rest -= cost(block++);
    return head * blocks + block + (block < blocks && 2 * rest >= cost(block) ? 1 : 0);
  };
  return {boundary(index), boundary(index + 1), index};
}

// ---- Memory of one thread. Rows of a block start on a cache line, an odd number of lines apart, so that a column of
// the block spreads over all sets of the cache.

inline constexpr std::int64_t padded_stride(std::int64_t width) { return (num_blocks(width, 16) | 1) * 16; }
inline constexpr std::int64_t score_stride = padded_stride(key_block);

template <class A>
struct ForwardMemory {
  A *keys_transposed, *values;     // of a group: [blocks][width][score_stride], [blocks * key_block][stride]
  A *query, *out;                  // of a unit: [query_block][stride]
  A* scores;                       // [query_block][score_stride]
  A *row_max, *row_sum, *rescale;  // [query_block]
  std::int64_t bytes;

  ForwardMemory(const AttentionShape& s, void* start) {
    const std::int64_t stride = padded_stride(s.head_width), key_blocks = num_blocks(s.kv_length, key_block);
    Carver carver(start);
    keys_transposed = carver.take<A>(key_blocks * s.head_width * score_stride);
    values = carver.take<A>(key_blocks * key_block * stride);
    query = carver.take<A>(query_block * stride);
    out = carver.take<A>(query_block * stride);
    scores = carver.take<A>(query_block * score_stride);
    row_max = carver.take<A>(query_block);
    row_sum = carver.take<A>(query_block);
    rescale = carver.take<A>(query_block);
    bytes = carver.bytes();
  }
};

template <class A>
struct BackwardMemory {
  A *keys_transposed, *values_transposed, *keys;  // of a group, as in forward
  A *dkeys[2], *dvalues[2];                       // [blocks * key_block][stride]: of the first group, of later ones
  A *query, *dout, *dquery;                       // of a unit: [query_block][stride]
  A *probabilities, *dscores;                     // [query_block][score_stride]
  A* derivatives = nullptr;                       // of scores by products; with a soft cap only
  A *row_lse, *row_delta;                         // [query_block]
  std::int64_t bytes;

  BackwardMemory(const AttentionShape& s, void* start) {
    const std::int64_t stride = padded_stride(s.head_width), key_blocks = num_blocks(s.kv_length, key_block);
    Carver carver(start);
    keys_transposed = carver.take<A>(key_blocks * s.head_width * score_stride);
    values_transposed = carver.take<A>(key_blocks * s.head_width * score_stride);
    keys = carver.take<A>(key_blocks * key_block * stride);
    for (A*& sum : dkeys) sum = carver.take<A>(key_blocks * key_block * stride);
    for (A*& sum : dvalues) sum = carver.take<A>(key_blocks * key_block * stride);
    query = carver.take<A>(query_block * stride);
    dout = carver.take<A>(query_block * stride);
    dquery = carver.take<A>(query_block * stride);
    probabilities = carver.take<A>(query_block * score_stride);
    dscores = carver.take<A>(query_block * score_stride);
    row_lse = carver.take<A>(query_block);
    row_delta = carver.take<A>(query_block);
    if (s.score.soft_cap > 0) derivatives = carver.take<A>(query_block * score_stride);
    bytes = carver.bytes();
  }
};

}  // namespace choir::kernels::cpu
