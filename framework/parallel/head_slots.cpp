#include "framework/parallel/head_slots.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// The heads held here. There is a gate for each, of each row.
std::int64_t num_heads(const ops::HeadRows& heads, std::int64_t rows) { return heads.gates.count() / rows; }

}  // namespace

std::int64_t slots_of_heads(const AttentionSpec& spec, const Rows& held, std::int64_t context_ranks) {
  if (spec.routing.chosen == 0) return 0;
  const std::int64_t positions = most_positions(held, context_ranks);
  const bool has_all = spec.heads.query(spec.tensor_rank).begin < spec.routing.always;
  return has_all ? positions : std::min(spec.routing.capacity, positions);
}

ops::HeadRowsRule head_rows_rule(const AttentionSpec& spec, const Context& context) {
  const Slice held = spec.heads.query(spec.tensor_rank);
  const std::int64_t ranks = context.mesh.context->size();
  return {.always = spec.routing.always,
          .first_head = held.begin,
          .heads = held.count(),
          .routed_per_sequence = std::min(spec.routing.capacity, most_positions(context.rows, ranks)),
          .per_sequence = slots_of_heads(spec, context.rows, ranks),
          .keys = context.rows.length,
          .band = spec.band,
          .documents = context.documents.ranges};
}

ops::AttentionOptions options_of_slots(ops::AttentionOptions options, const ops::HeadRows& heads,
                                       const AttentionSpec& spec, const Rows& rows) {
  const std::int64_t length = rows.length, slots = heads.per_sequence;
  // Of all slots those that may be used, each of which sees as many keys as a position in the mean.
  const Slice held = spec.heads.query(spec.tensor_rank);
  const std::int64_t always = std::clamp<std::int64_t>(spec.routing.always - held.begin, 0, held.count());
  const std::int64_t usable = always * slots + (held.count() - always) * std::min(spec.routing.capacity, slots);
  const auto seen = static_cast<double>(kernels::VisiblePairs<std::int64_t>(spec.band, length, length).count());
  options.counted_share = static_cast<double>(usable) / static_cast<double>(held.count() * slots) * seen /
                          static_cast<double>(length * length);
  options.band = kernels::full_band();
  options.documents = heads.ranges;
  options.documents_of_heads = true;
  options.first_query = 0;
  options.first_key = slots;
  return options;
}

Tensor to_slots(Runtime& runtime, const Tensor& x, const Tensor& gates, const ops::HeadRows& heads) {
  const std::int64_t held = num_heads(heads, x.rows()), width = x.width() / held;
  const Tensor rows = ops::contiguous(runtime, x).reshape({x.rows() * held, width});
  const Tensor slots = ops::gather_slots(runtime, rows, gates, heads.slots);
  return slots.reshape({slots.rows() / held, x.width()});
}

Tensor lse_of_rows(Runtime& runtime, const Tensor& lse, const ops::HeadRows& heads, const Rows& rows) {
  const std::int64_t held = num_heads(heads, rows.count()), slots = heads.per_sequence;
  const kernels::RowMap map = rows.map();
  std::vector<std::int32_t> slot_of(static_cast<std::size_t>(heads.slots.of_rows.count()));
  ops::download(runtime, heads.slots.of_rows, slot_of.data());
  const auto convert = [&]<class A>(A) {
    std::vector<A> of_slots(static_cast<std::size_t>(lse.count())), of_rows;
    ops::download(runtime, lse, of_slots.data());
    for (std::int64_t run = 0, first = 0; run < 2; first += rows.runs[run++].count())
      for (std::int64_t sequence = 0; sequence < rows.sequences; ++sequence)
        for (std::int64_t head = 0; head < held; ++head)
          for (std::int64_t i = first; i < first + rows.runs[run].count(); ++i) {
            const std::int64_t slot = slot_of[static_cast<std::size_t>(map.row_at(sequence, i) * held + head)];
            const std::int64_t index = (sequence * held + head) * slots + slot / held % slots;
            of_rows.push_back(slot < 0 ? std::numeric_limits<A>::infinity()
                                       : of_slots[static_cast<std::size_t>(index)]);
          }
    return ops::to_device(runtime, of_rows, lse.dtype());
  };
  return lse.dtype() == DType::f64 ? convert(0.0) : convert(0.0f);
}

Tensor from_slots(Runtime& runtime, const Tensor& x, const Tensor& gates, const ops::HeadRows& heads) {
  const std::int64_t held = heads.slots.rows_of_slots.count() / x.rows(), width = x.width() / held;
  const Tensor rows = ops::combine_slots(runtime, x.reshape({x.rows() * held, width}), gates, heads.slots);
  return rows.reshape({rows.rows() / held, x.width()});
}

}  // namespace choir
