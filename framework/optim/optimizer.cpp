#include "framework/optim/optimizer.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "framework/ops/elementwise.h"
#include "framework/ops/optimizer.h"

namespace choir {

Optimizer::Optimizer(const OptimizerConfig& config, ParameterStore& store, DataParallel& data, Context& context)
    : config_(config), store_(store), data_(data) {
  Runtime& runtime = context.runtime;
  const auto weight_decay = static_cast<float>(config.weight_decay);
  std::int64_t state_size = 0;
  for (const FlatRange& range : data.updated()) {
    std::vector<kernels::OptimizerSegment> segments;
    for (const ParameterPart& part : parts_in(store, {range}, false))
      segments.push_back(
          {part.flat_begin - range.begin, part.flat().end - range.begin, part.parameter->decays ? weight_decay : 0.0f});
    std::sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    if (!segments.empty())
      shards_.push_back({range, state_size, ops::to_device(runtime, segments, DType::u8, MemoryKind::optimizer)});
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
  for (const ParameterPart& part : parts_in(store, data.counted(), true)) {
    counted.push_back({part.flat().begin, part.flat().end});
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
  for (const Shard& shard : shards_)
    if (shard.flat.begin <= flat && flat < shard.flat.end) return shard.state_begin + flat - shard.flat.begin;
  assert(false && "an element that this rank does not update");
  return -1;
}

Tensor Optimizer::step(Context& context) {
  Runtime& runtime = context.runtime;
  ops::squared_norm(runtime, store_.gradient, counted_, counted_elements_, squared_norm_);
  context.mesh.world->all_reduce(squared_norm_, Reduce::sum, runtime.device.compute(), "gradient norm");
  ops::clip_factor(runtime, squared_norm_, config_.clip);

  for (const Shard& shard : shards_) {
    const auto flat = [&](const Tensor& array) { return array.slice_columns(shard.flat.begin, shard.flat.end); };
    const auto state = [&](std::size_t i) {
      return i < state_.size()
                 ? state_[i].values.slice_columns(shard.state_begin, shard.state_begin + shard.flat.count())
                 : Tensor{};
    };
    const Tensor value = store_.value ? flat(store_.value) : Tensor{};
    switch (config_.kind) {
      case OptimizerKind::adamw:
        ops::adamw(runtime, flat(store_.master), flat(store_.gradient), state(0), state(1), value, shard.segments,
                   config_.betas[0], config_.betas[1], static_cast<float>(config_.epsilon));
        break;
      case OptimizerKind::sgd:
        ops::sgd(runtime, flat(store_.master), flat(store_.gradient), state(0), value, shard.segments,
                 static_cast<float>(config_.momentum));
        break;
    }
  }
  data_.gather_masters(context);
  if (data_.gathers()) store_.round_values(runtime);  // elsewhere the update has rounded what it wrote
  return squared_norm_;
}

}  // namespace choir
