#include "framework/parallel/data.h"

#include <algorithm>

namespace choir {

std::vector<FlatRange> make_buckets(const std::vector<std::int64_t>& group_begins, std::int64_t size,
                                    std::int64_t target, std::int64_t alignment) {
  std::vector<FlatRange> buckets;
  const std::int64_t step = std::max(alignment, target / alignment * alignment);
  std::int64_t end = size;
  for (auto begin = group_begins.rbegin(); begin != group_begins.rend(); ++begin) {
    const bool last_group = begin + 1 == group_begins.rend();
    while (end - *begin >= step) {
      buckets.push_back({end - step, end});
      end -= step;
    }
    if (last_group && end > *begin) buckets.push_back({*begin, end});
  }
  return buckets;
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
    for (const FlatRange& range : ranges) {
      const std::int64_t begin = std::max(first, range.begin), end = std::min(last, range.end);
      if (begin < end) parts.push_back({&p, begin - p.offset(), end - p.offset(), begin});
    }
  }
  return parts;
}

DataParallel::DataParallel(const ParameterStore& store, const Mesh& mesh, bool zero, std::int64_t bucket_elements)
    : store_(store), zero_(zero), final_(static_cast<std::size_t>(store.groups())) {
  std::vector<std::int64_t> begins;
  for (int group = 0; group < store.groups(); ++group) begins.push_back(store.group_begin(group));
  const int ranks = mesh.gradient->size(), rank = mesh.gradient->rank();
  buckets_ = make_buckets(begins, store.size(), bucket_elements, bucket_alignment(ranks));
  for (const FlatRange& bucket : buckets_) {
    counted_.push_back(part_of(bucket, ranks, rank));
    updated_.push_back(zero_ ? counted_.back() : bucket);
  }
}

void DataParallel::group_final(int group, Context& context) {
  Device& device = context.runtime.device;
  Communicator& axis = *context.mesh.gradient;
  if (axis.size() == 1) {
    started_ = buckets_.size();
    return;
  }
  final_[static_cast<std::size_t>(group)] = true;
  auto first_final = static_cast<int>(final_.size());  // it and all later groups are final
  while (first_final > 0 && final_[static_cast<std::size_t>(first_final) - 1]) --first_final;
  const std::int64_t begin = first_final < store_.groups() ? store_.group_begin(first_final) : store_.size();
  Event ready;
  ready.record(device.compute());
  ready.wait(device.communicate());
  for (; started_ < buckets_.size() && buckets_[started_].begin >= begin; ++started_) {
    const FlatRange& bucket = buckets_[started_];
    const Tensor gradient = store_.gradient.slice_columns(bucket.begin, bucket.end);
    if (zero_) {
      const FlatRange part = part_of(bucket, axis.size(), axis.rank());
      axis.reduce_scatter(gradient, store_.gradient.slice_columns(part.begin, part.end), Reduce::sum,
                          device.communicate(), "gradient bucket");
    } else {
      axis.all_reduce(gradient, Reduce::sum, device.communicate(), "gradient bucket");
    }
  }
  done_.record(device.communicate());
}

void DataParallel::finish(Context& context) {
  done_.wait(context.runtime.device.compute());
  started_ = 0;
  final_.assign(final_.size(), false);
}

void DataParallel::gather_masters(Context& context) {
  if (!zero_) return;
  Communicator& axis = *context.mesh.gradient;
  for (const FlatRange& bucket : buckets_) {
    const FlatRange part = part_of(bucket, axis.size(), axis.rank());
    axis.all_gather(store_.master.slice_columns(part.begin, part.end),
                    store_.master.slice_columns(bucket.begin, bucket.end), context.runtime.device.compute(),
                    "updated weights");
  }
}

}  // namespace choir
