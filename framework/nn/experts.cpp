#include "framework/nn/experts.h"

#include <algorithm>

#include "framework/nn/choice_record.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "framework/parallel/context.h"
#include "framework/parallel/expert.h"

namespace choir {
namespace {

FeedForwardShape shared_shape(const ExpertsShape& s) {
  FeedForwardShape shape = s.expert;
  shape.hidden *= s.shared;
  return shape;
}

}  // namespace

Experts::Experts(const std::string& name, const ExpertsShape& shape, const TensorShare& share, ParameterStore& store)
    : shape_(shape), name_(name), places_{shape.count, share.expert_ranks}, held_(places_.held(share.expert_rank)) {
  const FeedForwardShape& s = shape.expert;
  router_ = store.add_weight(shape.count, s.width, true);
  store.add({.name = name + ".router.weight",
             .shape = {shape.count, s.width},
             .held = {0, shape.count, 0, s.width},
             .owned_end = share.rank == 0 ? shape.count : 0,
             .tensor_sum = TensorSum::all,  // of the hidden columns of each rank
             .initial = {0, s.deviation},
             .weight = router_});
  if (shape.biased) {
    bias_ = store.add_weight(shape.count, 1, false);
    store.add({.name = name + ".router.bias",
               .shape = {shape.count},
               .held = {0, shape.count, 0, 1},
               .owned_end = share.rank == 0 ? shape.count : 0,
               .decays = false,
               .sign_step = shape.bias_step,
               .weight = bias_});
  }
  if (shape.shared > 0) shared_.emplace(name + ".shared", shared_shape(shape), share, store);

  store.begin_group(Replicas::expert);
  const Slice columns = feed_forward_columns(s.hidden, share);
  std::vector<std::string> inputs = {".up.weight"};
  if (kernels::inputs_per_output(s.activation) == 2) inputs.insert(inputs.begin(), ".gate.weight");
  const auto parts = static_cast<std::int64_t>(inputs.size());
  up_ = store.add_weight(held_ * parts * columns.count(), s.width, true);
  down_ = store.add_weight(held_ * s.width, columns.count(), true);
  up_->overwritten = down_->overwritten = true;
  for (std::int64_t i = 0; i < held_; ++i) {
    const std::string expert = name + ".experts." + std::to_string(places_.first(share.expert_rank) + i);
    for (std::int64_t part = 0; part < parts; ++part)
      store.add({.name = expert + inputs[static_cast<std::size_t>(part)],
                 .shape = {s.hidden, s.width},
                 .held = {columns.begin, columns.end, 0, s.width},
                 .owned_end = columns.count(),
                 .initial = {0, s.deviation},
                 .weight = up_,
                 .first_row = (i * parts + part) * columns.count()});
    store.add({.name = expert + ".down.weight",
               .shape = {s.width, s.hidden},
               .held = {0, s.width, columns.begin, columns.end},
               .owned_end = s.width,
               .initial = {0, s.down_deviation},
               .weight = down_,
               .first_row = i * s.width});
  }
}

ops::Dropout Experts::dropout(const Context& context) const {
  return row_dropout(context, shape_.expert.dropout, name_);
}

ops::BalanceLoss Experts::balance(const Tensor& counts, double scale) const {
  if (shape_.balance_factor == 0) return {};
  return {.counts = counts, .factor = shape_.balance_factor * scale};
}

Tensor Experts::bias() const { return bias_ ? bias_->value.reshape({shape_.count}) : Tensor{}; }

ops::Routed Experts::route(const Tensor& logits, Context& context) const {
  const auto with = [&](const Tensor& given) {
    return ops::route(context.runtime, logits, bias(), given, shape_.chosen, shape_.score);
  };
  ops::Routed routed = with({});
  if (!context.choices) return routed;
  const Tensor given = replay_choices(name_, {routed.choices, logits, bias(), shape_.score}, context);
  return given ? with(given) : routed;
}

ops::SlotRule Experts::slot_rule(const Context& context) const {
  const Communicator& axis = *context.mesh.context;
  return {.capacity = shape_.capacity,
          .per_sequence = std::min(shape_.capacity, most_positions(context.rows, axis.size())),
          .places = places_,
          .context_ranks = axis.size(),
          .context_rank = axis.rank()};
}

Tensor Experts::forward(const Tensor& x, const Tensor& residual, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const char* label = name_.c_str();
  const kernels::RowMap map = context.rows.map();
  const Tensor with_shared = shared_ ? shared_->forward(x, residual, saved.shared, context) : residual;
  saved.x = keep(x);
  const Tensor all = enter(x, context, label);
  saved.logits = keep(ops::linear(runtime, "router", all, router_->value, {}, accumulate_type(runtime.compute_type)));
  saved.routed = route(saved.logits, context);
  keep(saved.routed.choices);
  keep(saved.routed.weights);
  saved.counts =
      keep(gather_counts(ops::count_choices(runtime, saved.routed.choices, shape_.count, map), context, label));
  saved.slots = ops::assign_slots(runtime, saved.routed.choices, saved.counts,
                                  context.cache ? context.cache->choices : Tensor{}, slot_rule(context), map);
  keep(saved.slots.of_rows);
  keep(saved.slots.rows_of_slots);
  if (context.expert_sums)
    ops::add_expert_sums(runtime, saved.logits, saved.slots, shape_.score, balance(saved.counts, 1),
                         context.expert_sums, map);

  saved.entered = keep(dispatch(ops::gather_slots(runtime, all, {}, saved.slots), places_, context, label));
  activate(saved, context);
  saved.out = keep(collect(ops::grouped_linear(runtime, "experts down", saved.active, down_->value, held_), places_,
                           context, label));
  const Tensor y = leave(ops::combine_slots(runtime, saved.out, saved.routed.weights, saved.slots), context, label);
  return ops::residual(runtime, with_shared, y, {}, dropout(context));
}

void Experts::activate(Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  saved.hidden = keep(ops::grouped_linear(runtime, "experts up", saved.entered, up_->value, held_));
  saved.active = keep(ops::activation(runtime, shape_.expert.activation, saved.hidden));
}

void Experts::forget(Saved& saved) const {
  saved.hidden = saved.active = {};
  if (shared_) shared_->forget(saved.shared);
}

void Experts::compute_again(Saved& saved, Context& context) const {
  activate(saved, context);
  if (shared_) shared_->compute_again(saved.shared, context);
}

Tensor Experts::backward(const Tensor& dy, const Saved& saved, Context& context, Tensor*) const {
  Runtime& runtime = context.runtime;
  const char* label = name_.c_str();
  const Tensor dsum = leave_backward(ops::residual_backward(runtime, dy, dropout(context)), context, label);
  const Tensor dweights = ops::combine_weight_gradient(runtime, dsum, saved.out, saved.slots);
  const Tensor dout =
      dispatch(ops::gather_slots(runtime, dsum, saved.routed.weights, saved.slots), places_, context, label);
  const Tensor dhidden = ops::activation_backward(
      runtime, shape_.expert.activation,
      ops::grouped_linear_input_gradient(runtime, "experts down", dout, down_->value, held_), saved.hidden);
  compute_weight_gradient(context, [this, dout, active = saved.active](Context& later) {
    ops::grouped_linear_weight_gradient(later.runtime, "experts down", dout, active, down_->gradient, held_,
                                        into_gradient(*down_));
  });
  const Tensor dslots = collect(ops::grouped_linear_input_gradient(runtime, "experts up", dhidden, up_->value, held_),
                                places_, context, label);
  compute_weight_gradient(context, [this, dhidden, entered = saved.entered](Context& later) {
    ops::grouped_linear_weight_gradient(later.runtime, "experts up", dhidden, entered, up_->gradient, held_,
                                        into_gradient(*up_));
  });

  // Each tensor rank has the part of its hidden columns, of the gradients of scores too. One adds the balance loss.
  const bool balances = context.mesh.tensor->rank() == 0 && context.row_scale > 0;
  const Tensor exact =
      ops::route_gradient(runtime, saved.logits, saved.routed, dweights, shape_.score,
                          balances ? balance(saved.counts, context.row_scale) : ops::BalanceLoss{}, context.rows.map());
  const Tensor dlogits = runtime.empty({exact.rows(), exact.width()}, dy.dtype());
  ops::narrow(runtime, exact, dlogits);
  const Tensor of_router = ops::linear_input_gradient(runtime, "router", dlogits, router_->value);
  const PendingTensor dx = enter_backward(
      ops::residual(runtime, of_router, ops::combine_slots(runtime, dslots, {}, saved.slots), {}, {}), context, label);
  compute_weight_gradient(context, [this, dlogits, x = saved.x](Context& later) {
    ops::linear_weight_gradient(later.runtime, "router", dlogits, enter(x, later, name_.c_str()), router_->gradient);
  });
  if (bias_ && context.row_scale > 0) {
    const Communicator& axis = *context.mesh.context;
    const Tensor counts = saved.counts.reshape({axis.size(), saved.counts.count() / axis.size()});
    compute_weight_gradient(context, [this, own = counts.slice_rows(axis.rank(), axis.rank() + 1),
                                      choices = saved.routed.choices.count()](Context& later) {
      ops::add_imbalance(later.runtime, own, choices, bias_->gradient.reshape({shape_.count}));
    });
  }
  if (!shared_) return dx.wait(runtime);
  const Tensor of_shared = shared_->backward(dy, saved.shared, context);
  return ops::residual(runtime, of_shared, dx.wait(runtime), {}, {});
}

Tensor Experts::make_cache(Runtime& runtime) const {
  return runtime.empty({shape_.count}, DType::i32, MemoryKind::saved);
}

}  // namespace choir
