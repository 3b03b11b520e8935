#include "framework/parallel/buckets.h"

#include <algorithm>

namespace choir {

std::vector<FlatRange> cut(const FlatRange& range, std::int64_t target, std::int64_t alignment) {
  std::vector<FlatRange> pieces;
  const std::int64_t step = std::max(alignment, target / alignment * alignment);
  for (std::int64_t begin = range.begin; begin < range.end; begin += step)
    pieces.push_back({begin, std::min(range.end, begin + step)});
  return pieces;
}

FlatRange part_of(const FlatRange& bucket, int ranks, int rank) {
  const std::int64_t part = bucket.count() / ranks;
  return {bucket.begin + rank * part, bucket.begin + (rank + 1) * part};
}

std::vector<ParameterPart> parts_in(const ParameterStore& store, const std::vector<FlatRange>& ranges,
                                    bool owned_only) {
  std::vector<ParameterPart> parts;
  for (const Parameter& p : store.parameters()) {
    const std::int64_t columns = p.held.columns();
    const std::int64_t first = p.offset() + (owned_only ? p.owned_begin : 0) * columns;
    const std::int64_t last = p.offset() + (owned_only ? p.owned_end : p.held.rows()) * columns;
    auto range = std::partition_point(ranges.begin(), ranges.end(), [&](const FlatRange& r) { return r.end <= first; });
    for (; range != ranges.end() && range->begin < last; ++range) {
      const std::int64_t begin = std::max(first, range->begin), end = std::min(last, range->end);
      if (begin < end) parts.push_back({&p, begin - p.offset(), end - p.offset(), begin});
    }
  }
  return parts;
}

std::vector<Bucket> make_buckets(const ParameterStore& store, int zero, const ShardPlace& all, std::int64_t target) {
  std::vector<Bucket> buckets;
  for (int group = 0; group < store.groups(); ++group) {
    const ShardPlace place = store.replicas(group) == Replicas::expert ? all.of_experts() : all;
    for (const bool matrix : {true, false})
      for (const FlatRange& range :
           cut(matrix ? store.matrices(group) : store.vectors(group), target, bucket_alignment(all.ranks))) {
        const FlatRange updated = zero == 0 ? range : part_of(range, place.shard, place.index % place.shard);
        const FlatRange counted = zero == 0 ? part_of(range, place.ranks, place.index)
                                            : part_of(updated, place.ranks / place.shard, place.index / place.shard);
        buckets.push_back({.group = group,
                           .matrix = matrix,
                           .range = range,
                           .updated = updated,
                           .counted = counted,
                           .master = {},
                           .value = {},
                           .gradient = {}});
      }
  }
  return buckets;
}

}  // namespace choir
