#include "framework/ops/head_routing.h"

#include "framework/ops/dispatch.h"
#include "kernels/head_routing.h"

namespace choir::ops {
namespace {

/// body.operator()<A>() with the type of gates.
template <class Body>
void with_gate_type(DType type, const Body& body) {
  check(type == DType::f32 || type == DType::f64, "heads: gates are f32, or f64");
  if (type == DType::f64) return body.template operator()<double>();
  body.template operator()<float>();
}

}  // namespace

HeadRows head_rows(Runtime& runtime, const Routed& routed, const Slots& slots, const HeadRowsRule& rule,
                   const kernels::RowMap& map) {
  const std::int64_t rows = routed.choices.rows(), sequences = map.sequences;
  check(rows == sequences * map.positions() && slots.of_rows.rows() == rows, "head rows: choices [N, k]");
  check(slots.rows_of_slots.count() % (sequences * rule.routed_per_sequence) == 0 &&
            rule.first_head + rule.heads - rule.always <=
                slots.rows_of_slots.count() / (sequences * rule.routed_per_sequence),
        "head rows: routed slots [heads, B, S]");
  check(rule.per_sequence >= (rule.first_head < rule.always ? map.positions() : rule.routed_per_sequence),
        "head rows: a slot for each row of a head");
  check(map.last_position() < rule.keys, "head rows: a key for each position held");
  check(!rule.documents ||
            (rule.documents.dtype() == DType::i32 && rule.documents.width() == 2 &&
             rule.documents.rows() % sequences == 0 && map.last_position() < rule.documents.rows() / sequences),
        "head rows: documents [B * T, 2] i32");
  const DType type = routed.weights.dtype();
  const HeadRows result{
      .slots = {runtime.empty({rows * rule.heads, 1}, DType::i32),
                runtime.empty({sequences * rule.per_sequence * rule.heads}, DType::i32)},
      .gates = runtime.empty({rows * rule.heads, 1}, type),
      .ranges = runtime.empty({sequences * rule.heads * (rule.per_sequence + rule.keys), 2}, DType::i32),
      .per_sequence = rule.per_sequence};
  const auto ranges_of = [](const Tensor& x) { return static_cast<kernels::DocumentRange*>(x ? x.raw() : nullptr); };
  with_gate_type(type, [&]<class A>() {
    const kernels::HeadRows<A> args{.weights = routed.weights.data<A>(),
                                    .rows_of_routed = slots.rows_of_slots.data<std::int32_t>(),
                                    .gates = result.gates.data<A>(),
                                    .slots = result.slots.of_rows.data<std::int32_t>(),
                                    .rows_of_slots = result.slots.rows_of_slots.data<std::int32_t>(),
                                    .ranges = ranges_of(result.ranges),
                                    .chosen = routed.choices.width(),
                                    .always = rule.always,
                                    .first_head = rule.first_head,
                                    .heads = rule.heads,
                                    .routed_per_sequence = rule.routed_per_sequence,
                                    .per_sequence = rule.per_sequence,
                                    .keys = rule.keys,
                                    .map = map,
                                    .band = rule.band,
                                    .documents = {.separate = static_cast<bool>(rule.documents),
                                                  .ranges = ranges_of(rule.documents),
                                                  .length = rule.documents ? rule.documents.rows() / sequences : 0}};
    launch<A>(runtime, "head rows",
              {.bytes = bytes_of({result.gates, result.slots.of_rows, result.slots.rows_of_slots, result.ranges})},
              [args](auto device) { kernels::compute_head_rows(device, args); });
  });
  return result;
}

Tensor head_weight_gradient(Runtime& runtime, const Tensor& dgates, const Routed& routed, const HeadRowsRule& rule) {
  check(dgates.contiguous() && dgates.count() == routed.choices.rows() * rule.heads &&
            dgates.dtype() == routed.weights.dtype(),
        "head weight gradient: dgates [N * H, 1]");
  Tensor dweights = runtime.empty({routed.choices.rows(), routed.choices.width()}, dgates.dtype());
  with_gate_type(dgates.dtype(), [&]<class A>() {
    const kernels::HeadWeightGradient<A> args{.choices = routed.choices.data<std::int32_t>(),
                                              .dgates = dgates.data<A>(),
                                              .dweights = dweights.data<A>(),
                                              .rows = dweights.rows(),
                                              .chosen = dweights.width(),
                                              .always = rule.always,
                                              .first_head = rule.first_head,
                                              .heads = rule.heads};
    launch<A>(runtime, "head weight gradient", {.bytes = bytes_of({routed.choices, dweights, dweights})},
              [args](auto device) { kernels::head_weight_gradient(device, args); });
  });
  return dweights;
}

void add_head_counts(Runtime& runtime, const Slots& routed, const Tensor& sums) {
  check(sums.dtype() == DType::f64 && sums.contiguous() && routed.rows_of_slots.count() % sums.count() == 0,
        "head counts: f64 sums of the routed heads");
  const kernels::HeadCounts args{.rows_of_routed = routed.rows_of_slots.data<std::int32_t>(),
                                 .sums = sums.data<double>(),
                                 .heads = sums.count(),
                                 .slots = routed.rows_of_slots.count() / sums.count()};
  launch<float>(runtime, "head counts", {.bytes = bytes_of({routed.rows_of_slots})},
                [args](auto device) { kernels::add_head_counts(device, args); });
}

}  // namespace choir::ops
