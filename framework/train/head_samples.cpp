#include "framework/train/head_samples.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "framework/train/layer_heads.h"

namespace choir {
namespace {

struct Sums {
  double entropy = 0, largest = -std::numeric_limits<double>::infinity(), sink = 0;
  std::int64_t queries = 0, later = 0;  // later: with a token before them
};

/// Of the first `length` queries.
Sums read_head(const kernels::AttentionHead& head, const AttentionStack& stack, std::int64_t length) {
  Sums sums;
  std::vector<float> p(static_cast<std::size_t>(head.kv_length));
  const std::int64_t queries = std::min(sampled_queries, length);
  const auto surprise = [](double share) { return share > 0 ? -share * std::log2(share) : 0; };
  for (std::int64_t n = 0; n < queries; ++n) {
    const std::int64_t i = length - 1 - n * length / queries;
    if (!kernels::is_computed(head, i)) continue;
    const auto keys = kernels::seen_keys(head, i);
    const std::int64_t first = head.documents.separate ? head.documents.ranges[i].begin : 0;
    const kernels::RowSums row = kernels::attention_row(head, i, p.data());
    const auto sink = static_cast<double>(row.sink);
    double largest = 0;
    sums.entropy += surprise(sink);
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      const auto share = static_cast<double>(p[static_cast<std::size_t>(j)]);
      sums.entropy += surprise(share);
      largest = std::max(largest, share);
    }
    ++sums.queries;
    sums.largest = std::max(sums.largest, std::log(largest) + static_cast<double>(row.log_sum));
    if (stack.compares_positions && i == first) continue;
    ++sums.later;
    sums.sink += sink + (first >= keys.begin ? static_cast<double>(p[static_cast<std::size_t>(first)]) : 0);
  }
  return sums;
}

}  // namespace

HeadSamples sample_heads(Trainer& trainer, const AttentionRecord& record, const SampleBuffer& first) {
  const ModelConfig& model = trainer.config().model;
  const std::int64_t heads = model.attention.heads, context_ranks = trainer.mesh().shape.context;
  const auto all_heads = static_cast<std::size_t>(attention_layers(model) * heads);
  std::vector<double> values(3 * all_heads);
  std::int64_t first_head = 0;  // of the layer
  for (const AttentionStack& stack : attention_stacks(model))
    for (std::int64_t layer = 0; layer < stack.layers; ++layer, first_head += heads) {
      const AttentionRecord::Entry* entry = recorded(record, stack.layer_name(layer), stack.sequence_of(0));
      if (!entry) continue;
      const LayerHeads views(trainer, stack, layer, *entry, stack.sequence_of(0), first);
      const std::int64_t length =
          stack.rows == TokenStream::target ? entry->rows.length : source_tokens(model, first, stack.rows);
      for (std::int64_t head = views.heads().begin + trainer.mesh().here.context; head < views.heads().end;
           head += context_ranks) {
        const Sums sums = read_head(views.at(head), stack, length);
        const auto at = static_cast<std::size_t>(first_head + head);
        values[at] = sums.entropy / static_cast<double>(sums.queries);
        values[all_heads + at] = sums.queries > 0 ? sums.largest : std::nan("");
        values[2 * all_heads + at] = sums.sink / static_cast<double>(sums.later);
      }
    }
  put_together(trainer.runtime(), *trainer.mesh().world, values);
  const auto part = [&](std::size_t which) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(which * all_heads);
    return std::vector<double>(begin, begin + static_cast<std::ptrdiff_t>(all_heads));
  };
  return {.entropy = part(0), .largest_logit = part(1), .sink = part(2)};
}

}  // namespace choir
