// Data parallelism: every data rank holds the same weights and sees other sequences; gradients are summed.
//
// Gradients are reduced in buckets cut from the end of the flat gradient array, because backward finishes it from the
// end: a bucket starts on the communication stream as soon as its last group is final, while backward continues.
//
// ZeRO stage 1 (Rajbhandari et al. 2019, arXiv 1910.02054): each data rank keeps the optimizer state of one equal part
// of every bucket, gets the summed gradient of that part only, updates it, and the parts are gathered.
//
// There is one path: the part of a bucket that a rank updates is the whole bucket (zero = 0) or its share (zero = 1).
#pragma once

#include <vector>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"

namespace choir {

/// Elements [begin, end) of the flat arrays.
struct FlatRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
  bool operator==(const FlatRange&) const = default;
};

/// The alignment of groups and buckets in elements, for `data_ranks` ranks: equal parts that start on cache lines.
constexpr std::int64_t bucket_alignment(std::int64_t data_ranks) { return 16 * data_ranks; }

/// Cuts [0, group_begin..., size) from the end into buckets of about `target` elements. The order is that of backward.
/// Small groups share a bucket, large ones are cut. Pure.
std::vector<FlatRange> make_buckets(const std::vector<std::int64_t>& group_begins, std::int64_t size,
                                    std::int64_t target, std::int64_t alignment);

/// Part `rank` of `ranks` equal parts.
FlatRange part_of(const FlatRange& bucket, int ranks, int rank);

/// Contiguous elements of one parameter that lie in a flat range: elements [begin, end) of its held part in row-major
/// order, at flat_begin of the flat arrays.
struct ParameterPart {
  const Parameter* parameter;
  std::int64_t begin, end;
  std::int64_t flat_begin;
  FlatRange flat() const { return {flat_begin, flat_begin + end - begin}; }
};

/// Where the parameters lie in `ranges`. `owned_only`: without the elements that another tensor rank counts.
std::vector<ParameterPart> parts_in(const ParameterStore&, const std::vector<FlatRange>& ranges, bool owned_only);

/// Elements of a bucket: 16 MB of f32. Above it Open MPI's all-reduce becomes much slower.
inline constexpr std::int64_t default_bucket_elements = 4 << 20;

class DataParallel {
 public:
  /// `store` is allocated with bucket_alignment(data ranks) and outlives this.
  DataParallel(const ParameterStore& store, const Mesh& mesh, bool zero,
               std::int64_t bucket_elements = default_bucket_elements);

  /// The gradients of `group` are final on this rank. Groups come in any order, the same on all data ranks.
  void group_final(int group, Context&);
  /// After the last group: the compute stream waits for every reduction. Ready for the next step.
  void finish(Context&);

  /// The ranges whose complete gradients this rank holds after finish() and which its optimizer updates.
  const std::vector<FlatRange>& updated() const { return updated_; }
  /// Disjoint over the data ranks, together everything: for sums over all parameters such as the gradient norm.
  const std::vector<FlatRange>& counted() const { return counted_; }
  /// After the update: every rank gets the masters that other ranks updated.
  void gather_masters(Context&);
  /// True if gather_masters() receives masters that this rank did not update.
  bool gathers() const { return zero_; }

 private:
  const ParameterStore& store_;
  bool zero_;
  std::vector<FlatRange> buckets_, updated_, counted_;
  std::vector<bool> final_;  // by group
  std::size_t started_ = 0;  // buckets, in order
  Event done_;
};

}  // namespace choir
