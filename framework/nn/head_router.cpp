#include "framework/nn/head_router.h"

#include "framework/nn/choice_record.h"
#include "framework/nn/linear.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "framework/parallel/expert.h"
#include "framework/parallel/head_slots.h"

namespace choir {

static constexpr auto score = ops::ExpertScore::softmax;

HeadRouter::HeadRouter(const std::string& name, std::int64_t width, std::int64_t heads, float deviation,
                       const HeadRouting& routing, const TensorShare& share, ParameterStore& store)
    : name_(name),
      heads_(heads - routing.always),
      routing_(routing),
      weight_(store.add_weight(heads - routing.always, width, true)) {
  store.add({.name = name + ".router.weight",
             .shape = {heads_, width},
             .held = {0, heads_, 0, width},
             .owned_end = share.rank == 0 ? heads_ : 0,
             .tensor_sum = TensorSum::all,  // of the heads of each rank
             .initial = {0, deviation},
             .weight = weight_});
}

ops::Routed HeadRouter::route(const Tensor& logits, Context& context) const {
  const auto with = [&](const Tensor& given) {
    return ops::route(context.runtime, logits, {}, given, routing_.chosen, score);
  };
  ops::Routed routed = with({});
  if (!context.choices) return routed;
  const Tensor given = replay_choices(name_, {routed.choices, logits, {}, score}, context);
  return given ? with(given) : routed;
}

ops::BalanceLoss HeadRouter::balance(const Tensor& counts, double scale) const {
  if (routing_.balance_factor == 0) return {};
  return {.counts = counts, .factor = routing_.balance_factor * scale};
}

void HeadRouter::choose(const Tensor& all, const AttentionSpec& spec, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const kernels::RowMap map = context.rows.map();
  const Communicator& axis = *context.mesh.context;
  const ops::HeadRowsRule rule = head_rows_rule(spec, context);
  saved.logits = keep(ops::linear(runtime, "router", all, weight_->value, {}, accumulate_type(runtime.compute_type)));
  saved.routed = route(saved.logits, context);
  keep(saved.routed.choices);
  keep(saved.routed.weights);
  saved.counts =
      keep(gather_counts(ops::count_choices(runtime, saved.routed.choices, heads_, map), context, name_.c_str()));
  const ops::Slots slots = ops::assign_slots(runtime, saved.routed.choices, saved.counts,
                                             context.cache ? context.cache->head_choices : Tensor{},
                                             {.capacity = routing_.capacity,
                                              .per_sequence = rule.routed_per_sequence,
                                              .places = {heads_, 1},
                                              .context_ranks = axis.size(),
                                              .context_rank = axis.rank()},
                                             map);
  if (context.head_sums) {
    ops::add_expert_sums(runtime, saved.logits, slots, score, balance(saved.counts, 1),
                         context.head_sums.slice_columns(0, 3), map);
    ops::add_head_counts(runtime, slots, context.head_sums.slice_columns(3, 3 + heads_));
  }
  saved.rows = ops::head_rows(runtime, saved.routed, slots, rule, map);
  for (const Tensor* tensor :
       {&saved.rows.gates, &saved.rows.slots.of_rows, &saved.rows.slots.rows_of_slots, &saved.rows.ranges})
    keep(*tensor);
}

Tensor HeadRouter::backward(const Tensor& dgates, const Tensor& x, const AttentionSpec& spec, const Saved& saved,
                            Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor dweights = ops::head_weight_gradient(runtime, dgates, saved.routed, head_rows_rule(spec, context));
  // Each tensor rank has the part of its heads. One adds the balance loss.
  const bool balances = context.mesh.tensor->rank() == 0 && context.row_scale > 0;
  const Tensor exact =
      ops::route_gradient(runtime, saved.logits, saved.routed, dweights, score,
                          balances ? balance(saved.counts, context.row_scale) : ops::BalanceLoss{}, context.rows.map());
  const Tensor dlogits = runtime.empty({exact.rows(), exact.width()}, runtime.compute_type);
  ops::narrow(runtime, exact, dlogits);
  compute_weight_gradient(context, [this, dlogits, x](Context& later) {
    ops::linear_weight_gradient(later.runtime, "router", dlogits, enter(x, later, name_.c_str()), weight_->gradient);
  });
  return ops::linear_input_gradient(runtime, "router", dlogits, weight_->value);
}

Tensor HeadRouter::make_cache(Runtime& runtime) const { return runtime.empty({heads_}, DType::i32, MemoryKind::saved); }

}  // namespace choir
