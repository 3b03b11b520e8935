// Finds what cannot work before anything is allocated. First each value on its own, by the limits in the table; then
// what depends on several keys or on the number of ranks, left out if one of its values is already wrong.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "framework/config/table.h"
#include "framework/config/validator.h"
#include "kernels/matmul.h"
#include "kernels/tiles.h"

namespace choir {
namespace {

bool within(const Limits& limits, double value) {
  if (!std::isfinite(value)) return false;
  if (limits.above_least ? value <= limits.least : value < limits.least) return false;
  return limits.below_most ? value < limits.most : value <= limits.most;
}

bool is_one_of(const std::string& value, const std::vector<std::string>& values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

struct WithinLimits {
  const Limits& limits;
  bool operator()(const std::int64_t* value) const { return within(limits, static_cast<double>(*value)); }
  bool operator()(const std::uint64_t*) const { return true; }
  bool operator()(const double* value) const { return within(limits, *value); }
  bool operator()(const bool*) const { return true; }
  bool operator()(const std::string*) const { return true; }
  bool operator()(const std::vector<std::int64_t>* values) const {
    return std::all_of(values->begin(), values->end(),
                       [&](std::int64_t value) { return within(limits, static_cast<double>(value)); });
  }
  bool operator()(const Choice&) const { return true; }
  bool operator()(const std::array<double, 2>* value) const {
    return within(limits, (*value)[0]) && within(limits, (*value)[1]);
  }
};

Problem outside_limits(const Field& field) {
  const Limits& limits = field.limits;
  const auto* integer = std::get_if<std::int64_t*>(&field.slot);
  const bool beyond = integer && static_cast<double>(**integer) > limits.most;
  const bool below = integer && static_cast<double>(**integer) < limits.least;
  Problem problem{fmt::format("{} = {} is out of range", field.key, value_text(field.slot))};
  problem.why = beyond && !limits.why.empty()
                    ? limits.why
                    : fmt::format("{} takes {}: {}", field.key, type_text(field), field.documentation);
  problem.fix = beyond  ? fmt::format("set {} to {:.0f} or less", field.key, limits.most)
                : below ? fmt::format("set {} to {:.0f} or more", field.key, limits.least)
                        : fmt::format("set {} to a value in that range", field.key);
  if (limits.most == limits.least) problem.fix = fmt::format("set {} to {:.0f}", field.key, limits.most);
  return problem;
}

}  // namespace

std::string nearest_multiples(std::int64_t value, std::int64_t step) {
  const std::int64_t below = value / step * step;
  return below > 0 ? fmt::format("{} or {}", below, below + step) : fmt::format("{}", step);
}

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> small, large;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    small.push_back(d);
    if (d != n / d) large.push_back(n / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

bool Validator::are_sound(std::initializer_list<const char*> keys) const {
  return std::none_of(keys.begin(), keys.end(), [&](const char* key) { return is_one_of(key, wrong_); });
}

std::vector<Problem> Validator::run() {
  for (WrongValue& wrong : values_outside_limits(config_)) {
    wrong_.push_back(std::move(wrong.key));
    problems_.push_back(std::move(wrong.problem));
  }
  check_heads();
  check_attention_mask();
  check_head_routing();
  check_linear_attention();
  check_tokenizer();
  check_masked();
  check_images();
  check_pairs();
  check_precision();
  check_cpu_kernels();
  check_schedule();
  check_layout();
  check_batch();
  return std::move(problems_);
}

void Validator::check_precision() {
  const TrainConfig& t = config_.train;
  if (t.device == TrainDevice::cuda && !kernels::built_with_cuda)
    add("train.device = cuda, but this choir was built without CUDA", "the build found no CUDA toolkit",
        "install the toolkit (nvcc, cuBLASLt, NCCL) and build again, or set train.device to cpu");
  if (t.offload != Offload::none && t.device == TrainDevice::cpu)
    add(fmt::format("train.offload = {} on the CPU", name_of(t.offload)),
        "it moves what a GPU holds into memory of the host, where a run on the CPU has all",
        "set train.offload to none");
  if (t.precision != Precision::f32 && t.device != TrainDevice::cuda && !t.emulate_bf16 &&
      !kernels::cpu::has_native_bf16())
    add(fmt::format("train.precision = {}, but this processor has no bf16 instructions", name_of(t.precision)),
        "bf16 matrix products need the instruction set avx512_bf16; without it they go through f32 copies, slower than "
        "f32",
        "set train.precision to f32, or train.emulate_bf16 to true (the same values, slowly)");
}

void Validator::check_cpu_kernels() {
  const TrainConfig& t = config_.train;
  if (t.cpu_kernels == CpuKernels::tiles && t.precision != Precision::f32 && t.device != TrainDevice::cuda &&
      !kernels::cpu::has_tiles())
    add(fmt::format("train.cpu_kernels = tiles, but {}", describe(kernels::cpu::examine_tiles())),
        "the kernels need the instruction sets amx_tile, amx_bf16 and avx512_bf16, Linux 5.16 or newer, and exact "
        "products of small integers",
        "set train.cpu_kernels to auto or onednn");
}

void Validator::check_schedule() {
  const OptimizerConfig& o = config_.optimizer;
  const std::int64_t steps = config_.train.steps;
  if (o.kind == OptimizerKind::adamw && o.momentum != 0)
    add(fmt::format("optimizer.momentum = {} with optimizer.kind = adamw", value_text(&config_.optimizer.momentum)),
        "AdamW does not read it; its first moment decays by optimizer.betas[0]",
        "delete optimizer.momentum, or set optimizer.kind to sgd");
  if (o.kind != OptimizerKind::adamw && o.moments != Moments::f32)
    add(fmt::format("optimizer.moments = {} with optimizer.kind = {}", name_of(o.moments), name_of(o.kind)),
        "only AdamW has moments; SGD's running sum of gradients is f32",
        "delete optimizer.moments, or set optimizer.kind to adamw");
  if (!are_sound({"train.steps", "optimizer.warmup", "optimizer.decay", "optimizer.schedule"})) return;
  const bool stable = o.schedule == Schedule::warmup_stable_decay;
  if (o.decay > 0 && !stable)
    add(fmt::format("optimizer.decay = {} with optimizer.schedule = {}", o.decay, name_of(o.schedule)),
        "only warmup_stable_decay reads it; the other schedules fall from the warmup to the last step",
        "delete optimizer.decay, or set optimizer.schedule to warmup_stable_decay");
  if (o.warmup + (stable ? o.decay : 0) <= steps) return;
  const std::string decay = stable ? fmt::format(" + optimizer.decay = {}", o.decay) : "";
  add(fmt::format("optimizer.warmup = {}{} is more than train.steps = {}", o.warmup, decay, steps),
      "the rate would still be rising, or not yet fallen, when the run ends",
      fmt::format("set train.steps to {} or more, or optimizer.warmup{} to {} or less",
                  o.warmup + (stable ? o.decay : 0), stable ? " + optimizer.decay" : "", steps));
}

std::vector<WrongValue> values_outside_limits(Config config) {
  std::vector<WrongValue> wrong;
  for (const Field& field : table(config))
    if (!std::visit(WithinLimits{field.limits}, field.slot)) wrong.push_back({field.key, outside_limits(field)});
  return wrong;
}

std::vector<Problem> validate(const Config& config, std::int64_t ranks) { return Validator(config, ranks).run(); }

}  // namespace choir
