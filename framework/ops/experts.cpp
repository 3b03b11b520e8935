#include "framework/ops/experts.h"

#include "framework/ops/dispatch.h"

namespace choir::ops {
namespace {

/// body.operator()<A>() with the type of scores.
template <class Body>
void with_score_type(DType type, const Body& body) {
  check(type == DType::f32 || type == DType::f64, "experts: scores are f32, or f64");
  if (type == DType::f64) return body.template operator()<double>();
  body.template operator()<float>();
}

bool is_index(const Tensor& x) { return x.dtype() == DType::i32 && x.contiguous(); }

kernels::Balance balance_of(const BalanceLoss& loss, const kernels::RowMap& map, std::int64_t experts) {
  if (!loss.counts) return {};
  const std::int64_t of_rank = map.sequences * 2 * experts;
  check(is_index(loss.counts) && loss.counts.count() % of_rank == 0,
        "balance loss: counts [context ranks, sequences, 2, experts]");
  return {.counts = loss.counts.data<std::int32_t>(), .ranks = loss.counts.count() / of_rank, .factor = loss.factor};
}

}  // namespace

Routed route(Runtime& runtime, const Tensor& logits, const Tensor& bias, const Tensor& given, std::int64_t chosen,
             ExpertScore score) {
  const std::int64_t rows = logits.rows(), experts = logits.width();
  check(logits.contiguous(), "route: logits [N, experts]");
  check(1 <= chosen && chosen <= std::min(experts, kernels::most_chosen_experts),
        "route: a row chooses 1 to 32 of the experts");
  check(!bias || (bias.count() == experts && bias.dtype() == logits.dtype()), "route: bias [experts]");
  check(!given || (is_index(given) && given.rows() == rows && given.width() == chosen), "route: given choices [N, k]");
  const Routed routed{runtime.empty({rows, chosen}, DType::i32), runtime.empty({rows, chosen}, logits.dtype())};
  with_score_type(logits.dtype(), [&]<class A>() {
    const kernels::Route<A> args{.logits = logits.data<A>(),
                                 .bias = data_or_null<A>(bias),
                                 .given = data_or_null<std::int32_t>(given),
                                 .choices = routed.choices.data<std::int32_t>(),
                                 .weights = routed.weights.data<A>(),
                                 .rows = rows,
                                 .experts = experts,
                                 .chosen = chosen,
                                 .score = score};
    launch<A>(runtime, "route", {.bytes = bytes_of({logits, routed.choices, routed.weights})},
              [args](auto device) { kernels::route(device, args); });
  });
  return routed;
}

Tensor count_choices(Runtime& runtime, const Tensor& choices, std::int64_t experts, const kernels::RowMap& map) {
  check(is_index(choices) && choices.rows() == map.sequences * map.positions(), "count choices: choices [N, k]");
  Tensor counts = runtime.empty({map.sequences, 2, experts}, DType::i32);
  const kernels::CountChoices args{.choices = choices.data<std::int32_t>(),
                                   .counts = counts.data<std::int32_t>(),
                                   .experts = experts,
                                   .chosen = choices.width(),
                                   .map = map};
  launch<float>(runtime, "count choices", {.bytes = bytes_of({choices, counts})},
                [args](auto device) { kernels::count_choices(device, args); });
  return counts;
}

void add_imbalance(Runtime& runtime, const Tensor& counts, std::int64_t choices, const Tensor& gradient) {
  const std::int64_t experts = gradient.count();
  check(is_index(counts) && counts.count() % (2 * experts) == 0, "imbalance: counts [sequences, 2, experts]");
  with_score_type(gradient.dtype(), [&]<class A>() {
    const kernels::AddImbalance<A> args{.counts = counts.data<std::int32_t>(),
                                        .gradient = gradient.data<A>(),
                                        .sequences = counts.count() / (2 * experts),
                                        .experts = experts,
                                        .choices = choices};
    launch<A>(runtime, "imbalance", {.bytes = bytes_of({counts, gradient, gradient})},
              [args](auto device) { kernels::add_imbalance(device, args); });
  });
}

Slots assign_slots(Runtime& runtime, const Tensor& choices, const Tensor& counts, const Tensor& cached,
                   const SlotRule& rule, const kernels::RowMap& map) {
  check(is_index(choices) && choices.rows() == map.sequences * map.positions(), "assign slots: choices [N, k]");
  check(is_index(counts) && counts.count() == rule.context_ranks * map.sequences * 2 * rule.places.experts,
        "assign slots: counts [context ranks, sequences, 2, experts]");
  check(!cached || (is_index(cached) && cached.count() == rule.places.experts && map.sequences == 1 &&
                    map.runs[1].empty() && rule.context_ranks == 1),
        "assign slots: cached counts [experts] of one sequence");
  check(rule.per_sequence >= std::min(rule.capacity, map.positions()), "assign slots: a slot for each row kept");
  const Slots slots{runtime.empty({choices.rows(), choices.width()}, DType::i32),
                    runtime.empty({rule.places.count() * map.sequences * rule.per_sequence}, DType::i32)};
  const kernels::AssignSlots args{.choices = choices.data<std::int32_t>(),
                                  .counts = counts.data<std::int32_t>(),
                                  .cached = data_or_null<std::int32_t>(cached),
                                  .slots = slots.of_rows.data<std::int32_t>(),
                                  .rows_of_slots = slots.rows_of_slots.data<std::int32_t>(),
                                  .chosen = choices.width(),
                                  .capacity = rule.capacity,
                                  .per_sequence = rule.per_sequence,
                                  .places = rule.places,
                                  .map = map,
                                  .context_ranks = rule.context_ranks,
                                  .context_rank = rule.context_rank};
  launch<float>(runtime, "assign slots", {.bytes = bytes_of({choices, counts, slots.of_rows, slots.rows_of_slots})},
                [args](auto device) { kernels::assign_slots(device, args); });
  return slots;
}

static void check_weights(const Tensor& weights, const Slots& slots, DType type) {
  check(!weights || (weights.contiguous() && weights.count() == slots.of_rows.count() &&
                     weights.dtype() == accumulate_type(type)),
        "slots: weights [N, k] f32, or f64 of f64");
}

Tensor gather_slots(Runtime& runtime, const Tensor& x, const Tensor& weights, const Slots& slots) {
  check(x.contiguous() && x.rows() == slots.of_rows.rows(), "gather slots: x [N, D]");
  check_weights(weights, slots, x.dtype());
  Tensor y = runtime.empty({slots.rows_of_slots.count(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const kernels::GatherSlots<T> args{.x = x.data<T>(),
                                       .weights = data_or_null<Accumulate<T>>(weights),
                                       .rows_of_slots = slots.rows_of_slots.data<std::int32_t>(),
                                       .y = y.data<T>(),
                                       .slots = y.rows(),
                                       .width = x.width(),
                                       .chosen = slots.of_rows.width()};
    launch<T>(runtime, "gather slots", {.bytes = 2 * bytes_of({y})},
              [args](auto device) { kernels::gather_slots(device, args); });
  });
  return y;
}

Tensor combine_slots(Runtime& runtime, const Tensor& x, const Tensor& weights, const Slots& slots) {
  check(x.contiguous() && x.rows() == slots.rows_of_slots.count(), "combine slots: x [slots, D]");
  check_weights(weights, slots, x.dtype());
  Tensor y = runtime.empty({slots.of_rows.rows(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const kernels::CombineSlots<T> args{.x = x.data<T>(),
                                        .weights = data_or_null<Accumulate<T>>(weights),
                                        .slots = slots.of_rows.data<std::int32_t>(),
                                        .y = y.data<T>(),
                                        .rows = y.rows(),
                                        .width = x.width(),
                                        .chosen = slots.of_rows.width()};
    const auto terms = static_cast<double>(args.chosen);
    launch<T>(runtime, "combine slots",
              {.flops = 2 * terms * static_cast<double>(y.count()), .bytes = (terms + 1) * bytes_of({y})},
              [args](auto device) { kernels::combine_slots(device, args); });
  });
  return y;
}

Tensor combine_weight_gradient(Runtime& runtime, const Tensor& dy, const Tensor& x, const Slots& slots) {
  check(dy.contiguous() && dy.rows() == slots.of_rows.rows(), "combine weight gradient: dy [N, D]");
  check(x.contiguous() && x.rows() == slots.rows_of_slots.count() && x.width() == dy.width() && x.dtype() == dy.dtype(),
        "combine weight gradient: x [slots, D]");
  Tensor dweights = runtime.empty({slots.of_rows.rows(), slots.of_rows.width()}, accumulate_type(dy.dtype()));
  with_type(dy.dtype(), [&]<class T>() {
    const kernels::CombineWeightGradient<T> args{.dy = dy.data<T>(),
                                                 .x = x.data<T>(),
                                                 .slots = slots.of_rows.data<std::int32_t>(),
                                                 .dweights = dweights.data<Accumulate<T>>(),
                                                 .rows = dy.rows(),
                                                 .width = dy.width(),
                                                 .chosen = dweights.width()};
    const auto terms = static_cast<double>(args.chosen);
    launch<T>(runtime, "combine weight gradient",
              {.flops = 2 * terms * static_cast<double>(dy.count()), .bytes = 2 * terms * bytes_of({dy})},
              [args](auto device) { kernels::combine_weight_gradient(device, args); });
  });
  return dweights;
}

Tensor route_gradient(Runtime& runtime, const Tensor& logits, const Routed& routed, const Tensor& dweights,
                      ExpertScore score, const BalanceLoss& loss, const kernels::RowMap& map) {
  check(
      logits.contiguous() && logits.rows() == map.sequences * map.positions() && routed.choices.rows() == logits.rows(),
      "route gradient: logits [N, experts]");
  check(dweights.contiguous() && dweights.count() == routed.weights.count() && dweights.dtype() == logits.dtype(),
        "route gradient: dweights [N, k]");
  Tensor dlogits = runtime.empty({logits.rows(), logits.width()}, logits.dtype());
  const kernels::Balance balance = balance_of(loss, map, logits.width());
  with_score_type(logits.dtype(), [&]<class A>() {
    const kernels::RouteBackward<A> args{.logits = logits.data<A>(),
                                         .choices = routed.choices.data<std::int32_t>(),
                                         .weights = routed.weights.data<A>(),
                                         .dweights = dweights.data<A>(),
                                         .dlogits = dlogits.data<A>(),
                                         .rows = logits.rows(),
                                         .experts = logits.width(),
                                         .chosen = routed.choices.width(),
                                         .score = score,
                                         .map = map,
                                         .balance = balance};
    launch<A>(runtime, "route backward", {.bytes = bytes_of({logits, dlogits, dweights})},
              [args](auto device) { kernels::route_backward(device, args); });
  });
  return dlogits;
}

void add_expert_sums(Runtime& runtime, const Tensor& logits, const Slots& slots, ExpertScore score,
                     const BalanceLoss& loss, const Tensor& sums, const kernels::RowMap& map) {
  check(sums.dtype() == DType::f64 && sums.count() == 3 && sums.contiguous(), "expert sums: three f64");
  check(
      logits.contiguous() && logits.rows() == map.sequences * map.positions() && slots.of_rows.rows() == logits.rows(),
      "expert sums: logits [N, experts]");
  const Tensor terms = runtime.empty({logits.rows()}, logits.dtype());
  const kernels::Balance balance = balance_of(loss, map, logits.width());
  with_score_type(logits.dtype(), [&]<class A>() {
    const kernels::ExpertSums<A> args{.logits = logits.data<A>(),
                                      .slots = slots.of_rows.data<std::int32_t>(),
                                      .terms = terms.data<A>(),
                                      .sums = sums.data<double>(),
                                      .rows = logits.rows(),
                                      .experts = logits.width(),
                                      .chosen = slots.of_rows.width(),
                                      .score = score,
                                      .map = map,
                                      .balance = balance};
    launch<A>(runtime, "expert sums", {.bytes = bytes_of({logits, slots.of_rows})},
              [args](auto device) { kernels::add_expert_sums(device, args); });
  });
}

}  // namespace choir::ops
