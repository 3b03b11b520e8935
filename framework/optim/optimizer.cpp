#include "framework/optim/optimizer.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "framework/ops/elementwise.h"
#include "framework/ops/optimizer.h"

namespace choir {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, Shards& shards, Context& context)
    : config_(config), shards_(shards) {
  Runtime& runtime = context.runtime;
  const auto weight_decay = static_cast<float>(config.weight_decay);
  std::int64_t state_size = 0;
  for (const Bucket& bucket : shards.buckets()) {
    const FlatRange& range = bucket.updated;
    const std::vector<ParameterPart> parts = parts_in(store, {range}, false);
    std::vector<kernels::OptimizerSegment> segments;
    for (const ParameterPart& part : parts) {
      const Parameter& parameter = *part.parameter;
      const FlatRange flat = part.flat();
      if (parameter.sign_step)
        sign_parts_.push_back(
            {shards.at(flat, &Bucket::master), shards.at(flat, &Bucket::gradient), *parameter.sign_step});
      else
        segments.push_back({flat.begin - range.begin, flat.end - range.begin, parameter.decays ? weight_decay : 0.0f});
    }
    std::sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    if (!parts.empty())
      pieces_.push_back({&bucket, state_size, ops::to_device(runtime, segments, DType::u8, MemoryKind::optimizer)});
    state_size += range.count();
  }
  const auto add_state = [&](const char* name) {
    state_.push_back({name, runtime.empty({state_size}, DType::f32, MemoryKind::optimizer)});
    ops::fill(runtime, state_.back().values, 0.0f);
  };
  switch (config.kind) {
    case OptimizerKind::adamw:
      add_state("first_moment");
      add_state("second_moment");
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
  for (const auto& [bucket, state_begin, segments] : pieces_)
    if (bucket->updated.begin <= flat && flat < bucket->updated.end) return state_begin + flat - bucket->updated.begin;
  assert(false && "an element that this rank does not update");
  return -1;
}

Tensor Optimizer::step(Context& context, const StepLimits& limits) {
  Runtime& runtime = context.runtime;
  ops::squared_norm(runtime, shards_.gradients(), counted_, counted_elements_, squared_norm_);
  context.mesh.world->all_reduce(squared_norm_, Reduce::sum, runtime.device.compute(), "gradient norm");
  ops::clip_factor(runtime, squared_norm_, config_.clip);
  ops::judge_step(runtime, limits.loss_sum, squared_norm_, limits.window, limits.length, limits.sigma);

  for (const auto& [bucket, state_begin, segments] : pieces_) {
    const auto state = [&, begin = state_begin, count = bucket->updated.count()](std::size_t i) {
      return i < state_.size() ? state_[i].values.slice_columns(begin, begin + count) : Tensor{};
    };
    const Tensor rounded = bucket->value.dtype() == bucket->master.dtype() ? Tensor{} : bucket->value;
    switch (config_.kind) {
      case OptimizerKind::adamw:
        ops::adamw(runtime, bucket->master, bucket->gradient, state(0), state(1), rounded, segments, config_.betas[0],
                   config_.betas[1], static_cast<float>(config_.epsilon));
        break;
      case OptimizerKind::sgd:
        ops::sgd(runtime, bucket->master, bucket->gradient, state(0), rounded, segments,
                 static_cast<float>(config_.momentum));
        break;
    }
  }
  for (const SignPart& part : sign_parts_) ops::sign_step(runtime, part.master, part.gradient, part.step);
  shards_.publish(context);
  return squared_norm_;
}

}  // namespace choir
