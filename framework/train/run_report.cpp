// What a run says, and the lines of metrics.jsonl.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/train/product_rate.h"
#include "framework/train/run_bookkeeping.h"

namespace choir {

void Run::say(const std::string& text) {
  if (text.empty()) return;
  progress_.say(text);
  log_ ? log_->info(text) : said_early_.push_back(text);
}

void Run::metric(const nlohmann::ordered_json& line) {
  if (metrics_) say(metrics_->add(line.dump()));
}

/// Times the largest product of the model on all ranks at once, for the share of peak. One measurement takes
/// milliseconds and is too low if other programs use the processor at that moment, so the best of several is taken.
/// Collective.
void Run::measure_peak(Trainer& trainer) {
  Runtime& runtime = trainer.runtime();
  const bool bf16_run = runtime.compute_type == DType::bf16;
  const Ledger::Product product{.m = trainer.micro_batch() * config_.model.context,
                                .n = std::max<std::int64_t>(1, config_.model.feed_forward_width() / mesh_.shape.tensor),
                                .k = config_.model.width,
                                .transpose_a = false,
                                .transpose_b = true,
                                .accumulate = false,
                                .bf16_in = bf16_run,
                                .bf16_out = bf16_run,
                                .calls = 1};
  product_flops_per_second_ = std::max(product_flops_per_second_, product_rate(runtime, {product}, 0.005));
  const Tensor rate = ops::to_device(runtime, std::vector<double>{product_flops_per_second_}, DType::f64);
  mesh_.world->all_reduce(rate, Reduce::sum, device_.compute(), "peak");
  ops::download(runtime, rate, &peak_flops_per_second_);
}

/// Which products of train.precision = fp8 are of bf16 on this rank.
static std::string describe_8_bits(const ParameterStore& store, DeviceKind device) {
  if (device == DeviceKind::cpu) return "fp8: a CPU multiplies in bf16 what numbers of 8 bits stand for";
  std::int64_t layers = 0;
  std::string example;
  for (const Parameter& p : store.parameters()) {
    const auto has = [&](const char* part) { return p.name.find(part) != std::string::npos; };
    const bool linear = p.shape.size() == 2 && (has("attention.") || has(".feed_forward.")) && !has(".router.") &&
                        !has(".experts.");  // nn/linear.h
    if (!linear || (p.weight->rows % 16 == 0 && p.weight->width % 16 == 0)) continue;
    if (++layers == 1) example = fmt::format("{} [{}, {}]", p.name, p.weight->rows, p.weight->width);
  }
  if (layers == 0) return "";
  return fmt::format(
      "fp8: {} on this rank multiply in bf16 what numbers of 8 bits stand for, since a width of the layer is not a "
      "multiple of 16: {} with what it is joined to",
      quantity(layers, "weight"), example);
}

void Run::describe(Trainer& trainer) {
  const MeshShape& shape = mesh_.shape;
  say(fmt::format("{} parameters; {}: {}; {} a rank; {} of {}", all_parameters(config_.model).global_count(),
                  quantity(shape.ranks(), "rank"), describe_layout(config_.parallel, shape, trainer.context_kind()),
                  quantity(device_.threads(), "thread"), quantity(trainer.micro_batches(), "micro-batch"),
                  quantity(trainer.micro_batch(), "sequence")));
  if (const std::string stages_held = trainer.describe_stages(); !stages_held.empty()) say(stages_held);
  const HeadPartition heads{config_.model.attention.heads, config_.model.kv_heads(), shape.tensor};
  std::string map = heads.describe();
  map.pop_back();
  say(map);
  if (heads.imbalance() > 1) say(fmt::format("the largest share of heads is {:.2f} times the mean", heads.imbalance()));
  say(data_->describe());
  if (config_.train.precision != Precision::fp8) return;
  if (const std::string text = describe_8_bits(trainer.parameters(), device_.kind()); !text.empty()) say(text);
}

void Run::report(const StepResult& result, double seconds, double run_seconds, std::int64_t steps_done) {
  const std::int64_t step = position_.step;
  const bool has_experts = config_.model.blocks_with_experts() > 0, routes_heads = config_.model.routes_heads();
  const double tokens = static_cast<double>(config_.train.batch * config_.model.context);
  const double flops = model_flops(config_.model, config_.train.batch);
  const double share = peak_flops_per_second_ > 0 ? flops / seconds / peak_flops_per_second_ : 0;
  if (share > 1 && !told_of_peak_)
    log_->info(
        "step {}: the share of peak would be {:.0f} %; it is not shown while it is above 100 %\n"
        "  why: other programs probably used the processors each time the matrix products were measured",
        step, 100 * share);
  told_of_peak_ = told_of_peak_ || share > 1;
  progress_.step({.step = step,
                  .steps = config_.train.steps,
                  .loss = result.loss,
                  .rate = result.rate,
                  .gradient_norm = result.gradient_norm,
                  .dropped = std::max(has_experts ? result.dropped : -1, routes_heads ? result.heads_dropped : -1),
                  .tokens_per_second = tokens / seconds,
                  .share_of_peak = share,
                  .memory_bytes = device_.allocator().at_peak().total(),
                  .seconds_left =
                      run_seconds / static_cast<double>(steps_done) * static_cast<double>(config_.train.steps - step)});
  if (step % config_.train.log_every != 0 && step != config_.train.steps) return;
  nlohmann::ordered_json line = {{"step", step},
                                 {"time", utc_now()},
                                 {"loss", result.loss},
                                 {"rate", result.rate},
                                 {"gradient_norm", result.gradient_norm},
                                 {"tokens_per_second", tokens / seconds},
                                 {"seconds", seconds},
                                 {"tokens", static_cast<double>(position_.samples * config_.model.context)}};
  if (!load_began_.empty()) {
    line["load_began"] = std::exchange(load_began_, "");
    line["steps_began"] = steps_began_;
  }
  if (has_experts) {
    line["dropped"] = result.dropped;
    line["balance_loss"] = result.balance_loss;
    if (result.dropped > many_dropped)
      line["warning"] = fmt::format("{:.1f} % of the choices of experts are dropped, more than {:.0f} %",
                                    100 * result.dropped, 100 * many_dropped);
  }
  if (routes_heads) {
    line["heads_dropped"] = result.heads_dropped;
    line["head_balance_loss"] = result.head_balance_loss;
    line["head_imbalance"] = result.head_imbalance;
  }
  metric(line);
}

/// A line of numbers by layer and head.
void Run::report_heads(const HeadSamples& heads) {
  const auto by_layer = [&](const std::vector<double>& values) {
    nlohmann::ordered_json layers = nlohmann::ordered_json::array();
    for (auto at = values.begin(); at != values.end(); at += config_.model.attention.heads)
      layers.push_back(std::vector<double>(at, at + config_.model.attention.heads));
    return layers;
  };
  metric({{"step", position_.step},
          {"time", utc_now()},
          {"head_entropy", by_layer(heads.entropy)},
          {"head_largest_logit", by_layer(heads.largest_logit)},
          {"head_sink", by_layer(heads.sink)}});
}

void Run::tell(const std::optional<SaveOutcome>& outcome) {
  if (!outcome) return;
  if (outcome->saved) {
    say(fmt::format("saved {}{}{}", outcome->path, outcome->text.empty() ? "" : "; ", outcome->text));
    last_saved_ = outcome->step;
  } else {
    say(fmt::format("could not save {}: {}\n  the checkpoint before it is whole", outcome->path, outcome->text));
  }
}

/// Names the ranks that are slower than others. Collective.
void Run::compare_times() {
  const Stragglers::Comparison result = stragglers_->compare(*mesh_.host);
  for (const SlowRank& slow : result.slow) {
    const RankTimes& times = result.ranks[static_cast<std::size_t>(slow.rank)];
    const double percent = 100 * (slow.ratio - 1);
    const std::string gpu = times.device.empty() ? "" : fmt::format(" (GPU {})", times.device);
    say(fmt::format(
        "step {}: rank {} on host {}{} is {:.0f} % slower than others with the same work: it computes {:.4g} s of "
        "a step and waits {:.4g} s",
        position_.step, slow.rank, times.host, gpu, percent, times.compute, times.waiting));
    metric({{"step", position_.step},
            {"time", utc_now()},
            {"slow_rank", slow.rank},
            {"host", times.host},
            {"gpu", times.device},
            {"slower_percent", percent},
            {"compute_seconds", times.compute},
            {"waiting_seconds", times.waiting}});
  }
}

}  // namespace choir
