#include "framework/parallel/head_partition.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace choir {

Slice even_slice(std::int64_t total, std::int64_t parts, std::int64_t index) {
  const std::int64_t small = total / parts, larger = total % parts;
  const std::int64_t begin = index * small + std::min(index, larger);
  return {begin, begin + small + (index < larger ? 1 : 0)};
}

Slice even_slice_in_units(std::int64_t total, std::int64_t unit, std::int64_t parts, std::int64_t index) {
  const Slice units = even_slice((total + unit - 1) / unit, parts, index);
  return {std::min(units.begin * unit, total), std::min(units.end * unit, total)};
}

Slice HeadPartition::key_value(std::int64_t rank) const {
  const Slice q = query(rank);
  return {q.begin / group_size(), (q.end - 1) / group_size() + 1};
}

Slice HeadPartition::owned_key_value(std::int64_t rank) const {
  const Slice held = key_value(rank);
  const std::int64_t before = rank == 0 ? 0 : key_value(rank - 1).end;  // contiguous: lower ranks hold [0, before)
  return {std::max(held.begin, before), std::max(held.end, before)};
}

bool HeadPartition::shared(std::int64_t kv_head) const {
  std::int64_t holders = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const Slice held = key_value(rank);
    holders += held.begin <= kv_head && kv_head < held.end;
  }
  return holders > 1;
}

bool HeadPartition::any_shared() const {
  for (std::int64_t head = 0; head < kv_heads; ++head)
    if (shared(head)) return true;
  return false;
}

double HeadPartition::imbalance() const {
  return static_cast<double>(query(0).count() * ranks) / static_cast<double>(heads);
}

std::string HeadPartition::describe() const {
  const auto range = [](const Slice& s) {
    return s.count() == 1 ? fmt::format("{}", s.begin) : fmt::format("{}-{}", s.begin, s.end - 1);
  };
  std::string text;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const Slice q = query(rank), kv = key_value(rank);
    text += fmt::format("rank {}: query head{} {} ({}), key/value head{} {}", rank, q.count() == 1 ? "" : "s", range(q),
                        q.count(), kv.count() == 1 ? "" : "s", range(kv));
    std::vector<std::int64_t> replicated;
    for (std::int64_t head = kv.begin; head < kv.end; ++head)
      if (shared(head)) replicated.push_back(head);
    if (!replicated.empty()) text += fmt::format(" (replicated: {})", fmt::join(replicated, ", "));
    text += '\n';
  }
  return text;
}

}  // namespace choir
