#include "framework/optim/optimizer.h"

#include <cassert>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

DType type_of(Moments moments) {
  switch (moments) {
    case Moments::f32:
      return DType::f32;
    case Moments::bf16:
      return DType::bf16;
  }
  std::abort();  // all values are above
}

kernels::PlaceInTensor place_of(const ParameterPart& part) {
  const Parameter& p = *part.parameter;
  const std::int64_t width = p.shape.size() > 1 ? p.shape[1] : 1;
  return {.first = part.begin,
          .columns = p.held.columns(),
          .width = width,
          .origin = p.held.row_begin * width + p.held.column_begin};
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, Shards& shards, Context& context,
                     Allocator* memory)
    : config_(config), shards_(shards) {
  Runtime& runtime = context.runtime;
  const auto weight_decay = static_cast<float>(config.weight_decay);
  std::int64_t state_size = 0;
  std::vector<ops::Update> updates;
  for (const Bucket& bucket : shards.buckets()) {
    const FlatRange& range = bucket.updated;
    const std::vector<ParameterPart> parts = parts_in(store, {range}, false);
    const bool rounds = bucket.value.dtype() != bucket.master.dtype();
    for (const ParameterPart& part : parts) {
      const Parameter& parameter = *part.parameter;
      const FlatRange flat = part.flat();
      const Tensor master = shards.at(flat, &Bucket::master), gradient = shards.at(flat, &Bucket::gradient);
      if (parameter.sign_step)
        sign_parts_.push_back({master, gradient, *parameter.sign_step});
      else
        updates.push_back({.state_begin = state_size + flat.begin - range.begin,
                           .weight_decay = parameter.decays ? weight_decay : 0.0f,
                           .weight = master,
                           .gradient = gradient,
                           .value = rounds ? shards.at(flat, &Bucket::value) : Tensor{},
                           .key = random_key(runtime.seed, parameter.name + ".moments"),
                           .place = place_of(part)});
    }
    if (!parts.empty()) pieces_.push_back({range, state_size});
    state_size += range.count();
  }
  table_ = ops::make_update_table(runtime, std::move(updates));
  const auto add_state = [&](const char* name, DType type = DType::f32) {
    Allocator& of_state = memory ? *memory : runtime.device.allocator();
    state_.push_back({name, Tensor(of_state, {state_size}, type, MemoryKind::optimizer)});
    ops::fill(runtime, state_.back().values, 0.0f);
  };
  switch (config.kind) {
    case OptimizerKind::adamw:
      add_state("first_moment", type_of(config.moments));
      add_state("second_moment", type_of(config.moments));
      break;
    case OptimizerKind::sgd:
      if (config.momentum > 0) add_state("momentum");
      break;
  }
  std::vector<kernels::Range> counted;
  for (const ParameterPart& part : parts_in(store, shards.counted(), true)) {
    if (part.parameter->sign_step) continue;
    const std::int64_t begin = shards.gradient_offset(part.flat_begin);
    counted.push_back({begin, begin + part.flat().count()});
    counted_elements_ += part.flat().count();
  }
  counted_ = ops::to_device(runtime, counted, DType::u8, MemoryKind::optimizer);
  squared_norm_ = runtime.empty({1}, DType::f64, MemoryKind::optimizer);
}

kernels::StepScalars Optimizer::scalars(std::int64_t step, double rate) const {
  const auto correction = [&](double beta) {
    return static_cast<float>(1.0 / (1.0 - std::pow(beta, static_cast<double>(step - state_origin_))));
  };
  return {.step = static_cast<std::uint64_t>(step),
          .rate = static_cast<float>(rate),
          .bias_correction1 = correction(config_.betas[0]),
          .bias_correction2 = correction(config_.betas[1])};
}

std::int64_t Optimizer::state_offset(std::int64_t flat) const {
  for (const auto& [updated, state_begin] : pieces_)
    if (updated.begin <= flat && flat < updated.end) return state_begin + flat - updated.begin;
  assert(false && "an element that this rank does not update");
  return -1;
}

Tensor Optimizer::step(Context& context, const StepLimits& limits) {
  Runtime& runtime = context.runtime;
  ops::squared_norm(runtime, shards_.gradients(), counted_, counted_elements_, squared_norm_);
  context.mesh.world->all_reduce(squared_norm_, Reduce::sum, runtime.device.compute(), "gradient norm");
  ops::clip_factor(runtime, squared_norm_, config_.clip);
  ops::judge_step(runtime, limits.loss_sum, squared_norm_, limits.window, limits.length, limits.sigma, limits.rejected);

  switch (config_.kind) {
    case OptimizerKind::adamw:
      ops::adamw(runtime, table_, state_[0].values, state_[1].values, config_.betas[0], config_.betas[1],
                 static_cast<float>(config_.epsilon));
      break;
    case OptimizerKind::sgd:
      ops::sgd(runtime, table_, state_.empty() ? Tensor{} : state_[0].values, static_cast<float>(config_.momentum));
      break;
  }
  for (const SignPart& part : sign_parts_) ops::sign_step(runtime, part.master, part.gradient, part.step);
  shards_.publish(context);
  return squared_norm_;
}

}  // namespace choir
