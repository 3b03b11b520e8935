// Which rank updates which elements: the flat order of the parameters, cut into buckets, and the parts of each. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/core/parameter.h"
#include "framework/core/tensor.h"

namespace choir {

/// The alignment of matrices, vectors and buckets in elements, for `ranks` ranks: equal parts that start on cache
/// lines.
constexpr std::int64_t bucket_alignment(std::int64_t ranks) { return 16 * ranks; }

/// Cuts `range` into pieces of about `target` elements, multiples of `alignment`, as the range is. Pure.
std::vector<FlatRange> cut(const FlatRange& range, std::int64_t target, std::int64_t alignment);

/// Part `rank` of `ranks` equal parts.
FlatRange part_of(const FlatRange& bucket, int ranks, int rank);

/// Contiguous elements of one parameter that lie in a flat range: elements [begin, end) of its held part in row-major
/// order, at flat_begin of the flat order.
struct ParameterPart {
  const Parameter* parameter;
  std::int64_t begin, end;
  std::int64_t flat_begin;
  FlatRange flat() const { return {flat_begin, flat_begin + end - begin}; }
};

/// Where the parameters lie in `ranges`, which are disjoint and ascending. `owned_only`: without the elements that
/// another tensor rank counts.
std::vector<ParameterPart> parts_in(const ParameterStore&, const std::vector<FlatRange>& ranges, bool owned_only);

/// What one message reduces and another one gathers: a range of one group, of matrices or of vectors.
struct Bucket {
  int group = 0;
  bool matrix = true;
  FlatRange range;
  FlatRange updated;  ///< what this rank updates: the range (stage 0) or its equal part of it in its replica
  FlatRange counted;  ///< its equal part of `updated`: over all ranks, every element once

  Tensor master;    ///< [updated] f32 (f64 in tests); empty if nothing is trained and the values are bf16
  Tensor value;     ///< [updated] as layers read it; the same memory as master if the types are equal
  Tensor gradient;  ///< [updated] f32 (f64 in tests), complete after finish(); empty if nothing is trained
};

/// The ranks that have the same weights, and rank `index` of them: consecutive ranks are one replica.
struct ShardPlace {
  int ranks = 1, index = 0;
  int shard = 1;   ///< ranks of a replica
  int expert = 1;  ///< of these, so many consecutive ones have different experts
  /// The same of the ranks with the experts of this one.
  ShardPlace of_experts() const { return {.ranks = ranks / expert, .index = index / expert, .shard = shard / expert}; }
};

/// The buckets of a store that is laid out, in the flat order; without memory. Pure.
std::vector<Bucket> make_buckets(const ParameterStore&, int zero, const ShardPlace&, std::int64_t target);

/// Elements of a bucket: 16 MB of f32. Above it Open MPI's all-reduce becomes much slower.
inline constexpr std::int64_t default_bucket_elements = 4 << 20;

}  // namespace choir
