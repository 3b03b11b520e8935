// Any number of heads on any number of ranks.
//
// H query heads are split contiguously and as evenly as possible. A rank holds the whole of each key/value head that
// its query heads read. If several ranks read one, its weights are replicated, and the lowest of these ranks owns it.
//
//   25 heads, 8 ranks:                      4 3 3 3 3 3 3 3
//   8 query, 2 key/value heads, 3 ranks:    queries 3 3 2, key/value head 0 on ranks 0 and 1, head 1 on ranks 1 and 2
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace choir {

/// Rank `index` of `parts` gets [begin, end) of `total` things: the first total % parts ranks get one more.
struct Slice {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
  bool operator==(const Slice&) const = default;
};
Slice even_slice(std::int64_t total, std::int64_t parts, std::int64_t index);

/// The same in units: every slice but the last is a multiple of `unit`. Feed-forward columns are split in units of 8.
Slice even_slice_in_units(std::int64_t total, std::int64_t unit, std::int64_t parts, std::int64_t index);

struct HeadPartition {
  std::int64_t heads, kv_heads;  ///< kv_heads divides heads
  std::int64_t ranks;            ///< at most `heads`

  std::int64_t group_size() const { return heads / kv_heads; }
  Slice query(std::int64_t rank) const { return even_slice(heads, ranks, rank); }
  Slice key_value(std::int64_t rank) const;        ///< held here, replicas included
  Slice owned_key_value(std::int64_t rank) const;  ///< those no lower rank holds
  std::int64_t group_offset(std::int64_t rank) const { return query(rank).begin % group_size(); }
  bool shared(std::int64_t kv_head) const;  ///< held by more than one rank
  bool any_shared() const;
  double imbalance() const;  ///< largest share of query heads over the mean: 1 is even

  /// A line for each rank: "rank 1: query heads 3-5 (3), key/value heads 0-1 (replicated: 0)".
  std::string describe() const;
};

}  // namespace choir
