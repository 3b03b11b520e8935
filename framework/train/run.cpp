#include "framework/train/run.h"

#include <fmt/format.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/reader.h"
#include "framework/checkpoint/writer.h"
#include "framework/comm/watchdog.h"
#include "framework/data/sampler.h"
#include "framework/ops/elementwise.h"
#include "framework/train/non_finite.h"
#include "framework/train/product_rate.h"
#include "framework/train/progress.h"
#include "framework/train/snapshot.h"
#include "framework/train/trainer.h"

namespace choir {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The bookkeeping of one run on one rank.
class Run {
 public:
  Run(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, const CallRing& ring)
      : config_(config),
        options_(options),
        mesh_(mesh),
        device_(device),
        file_(config.data.path),
        sampler_(
            file_,
            {.sequence_length = config.model.context, .seed = config.train.seed, .held_out = config.data.held_out}),
        progress_(stdout, mesh.world->rank() == 0, options.live),
        log_(spdlog::basic_logger_mt("rank", options.folder.log(mesh.world->rank()))),
        io_(StreamMode::threaded),
        writer_(options.folder.checkpoints(), config.checkpoint.keep, *mesh.host, mesh.host->device().communicate(),
                io_),
        watchdog_(ring, options.folder.logs(), config.train.timeout) {
    throw_if_any(check_fits(file_, config.model, config.data.tokenizer));
    log_->flush_on(spdlog::level::info);
  }
  ~Run() { spdlog::drop("rank"); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  RunEnd train();

 private:
  void say(const std::string& text) {
    progress_.say(text);
    log_->info(text);
  }
  void metric(const nlohmann::ordered_json& line) {
    if (mesh_.world->rank() == 0) metrics_ << line.dump() << std::endl;
  }
  void measure_peak(Trainer& trainer);
  std::int64_t start(Trainer& trainer);
  std::int64_t resume(Trainer& trainer);
  void describe(Trainer& trainer);
  void report(const StepResult& result, std::int64_t step, double seconds, double run_seconds, std::int64_t steps_done);
  void evaluate(Trainer& trainer, std::int64_t step);
  void save(Trainer& trainer, std::int64_t step);
  void tell(const std::optional<SaveOutcome>& outcome);
  RunEnd agreed_stop();

  const Config& config_;
  const RunOptions& options_;
  Mesh& mesh_;
  Device& device_;
  TokenFile file_;
  Sampler sampler_;
  Progress progress_;
  std::shared_ptr<spdlog::logger> log_;
  Stream io_;  // the process's one HDF5 thread
  CheckpointWriter writer_;
  Watchdog watchdog_;
  std::ofstream metrics_;
  std::int64_t last_saved_ = -1;
  double peak_flops_per_second_ = 0;  // of matrix products alone, all ranks together
};

/// The largest product of the model, on all ranks at once: some tens of milliseconds, for the share of peak.
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
  const Tensor rate = ops::to_device(runtime, std::vector<double>{product_rate(runtime, {product}, 0.03)}, DType::f64);
  mesh_.world->all_reduce(rate, Reduce::sum, device_.compute(), "peak");
  ops::download(runtime, rate, &peak_flops_per_second_);
}

/// Restores what the configuration or --resume asks for. Returns the last step that is done.
std::int64_t Run::start(Trainer& trainer) {
  if (options_.resume) return resume(trainer);
  const auto existing = list_checkpoints(options_.folder.checkpoints());
  if (!existing.empty())
    throw ConfigError(Problem{.what = "train.folder = " + options_.folder.path + " already holds a run, at step " +
                                      std::to_string(existing.front().step),
                              .why = "a new run there would mix with it",
                              .fix = "go on with --resume, or set train.folder to another folder"});
  if (!config_.train.from.empty()) {
    const CheckpointReader reader(config_.train.from);
    throw_if_any(check_tokenizer(file_, tokenizer_of(reader).digest(), reader.path()));
    const std::string damage = verify_together(reader.path(), *mesh_.host, mesh_.host->device().communicate());
    if (!damage.empty())
      throw ConfigError(Problem{.what = "train.from = " + reader.path() + " is damaged: " + damage,
                                .fix = "name another checkpoint"});
    load_weights(trainer, reader);
    say("starting from the weights of " + reader.path());
  }
  return 0;
}

std::int64_t Run::resume(Trainer& trainer) {
  std::vector<CheckpointInfo> rejected;
  const auto latest =
      find_latest(options_.folder.checkpoints(), *mesh_.host, mesh_.host->device().communicate(), rejected);
  for (const CheckpointInfo& info : rejected) say("rejected " + info.path + ": " + info.problem);
  if (!latest) {
    say(rejected.empty() ? "nothing to resume in " + options_.folder.path + ": starting at step 1"
                         : "no whole checkpoint is left: starting at step 1");
    return 0;
  }
  const CheckpointReader reader(latest->path);
  throw_if_any(check_resume(config_of(reader), config_));
  const auto digest = reader.state().find("tokens_digest");
  if (digest != reader.state().end() && digest->second != file_.tokens_digest())
    throw ConfigError(
        Problem{.what = "data.path = " + config_.data.path + " holds other tokens than the run was started with",
                .why = "a resumed run sees the same samples",
                .fix = "name the token file of the run"});
  load_all(trainer, reader);
  say(fmt::format("resuming {} after step {}", latest->path, reader.step()));
  last_saved_ = reader.step();
  return reader.step();
}

void Run::describe(Trainer& trainer) {
  const MeshShape& shape = mesh_.shape;
  say(fmt::format("{} parameters; {} rank{}: tensor {}, data {}; {} thread{} a rank; {} micro-batch{} of {} sequences",
                  trainer.parameters().global_count(), shape.ranks(), shape.ranks() == 1 ? "" : "s", shape.tensor,
                  shape.data, device_.threads(), device_.threads() == 1 ? "" : "s", trainer.micro_batches(),
                  trainer.micro_batches() == 1 ? "" : "es", trainer.micro_batch()));
  const HeadPartition heads{config_.model.attention.heads, config_.model.kv_heads(), shape.tensor};
  std::string map = heads.describe();
  map.pop_back();
  say(map);
  if (heads.imbalance() > 1) say(fmt::format("the largest share of heads is {:.2f} times the mean", heads.imbalance()));
  say(fmt::format("{}: {} tokens, {} for training ({} windows of {}), {} held-out sequences", config_.data.path,
                  file_.num_tokens(), sampler_.first_held_out_token(), sampler_.num_train_windows(),
                  config_.model.context, sampler_.num_evaluation_sequences()));
}

void Run::report(const StepResult& result, std::int64_t step, double seconds, double run_seconds,
                 std::int64_t steps_done) {
  const double tokens = static_cast<double>(config_.train.batch * config_.model.context);
  const double flops = model_flops(config_.model, config_.train.batch);
  progress_.step({.step = step,
                  .steps = config_.train.steps,
                  .loss = result.loss,
                  .rate = result.rate,
                  .gradient_norm = result.gradient_norm,
                  .tokens_per_second = tokens / seconds,
                  .flops_per_second = flops / seconds,
                  .peak_flops_per_second = peak_flops_per_second_,
                  .memory_bytes = device_.allocator().at_peak().total(),
                  .seconds_left =
                      run_seconds / static_cast<double>(steps_done) * static_cast<double>(config_.train.steps - step)});
  if (step % config_.train.log_every == 0 || step == config_.train.steps)
    metric({{"step", step},
            {"loss", result.loss},
            {"rate", result.rate},
            {"gradient_norm", result.gradient_norm},
            {"tokens_per_second", tokens / seconds},
            {"seconds", seconds},
            {"tokens", static_cast<double>(step) * tokens}});
}

void Run::evaluate(Trainer& trainer, std::int64_t step) {
  const std::int64_t all = sampler_.num_evaluation_sequences();
  if (all == 0) return;
  const std::int64_t wanted = config_.train.evaluate_sequences;
  const std::int64_t samples = wanted > 0 ? std::min(wanted, all) : all;
  // Spread evenly over the held-out text, so that few sequences speak for all of it.
  const LossSum sum = trainer.evaluate(
      samples, [&](std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
        sampler_.evaluation_sequence(index * all / samples, inputs, targets);
        return sampler_.target_bytes(targets);
      });
  say(fmt::format("step {}: held-out loss {:.4f} nats a token, {:.4f} bits per byte ({} of {} sequences)", step,
                  sum.mean(), sum.bits_per_byte(), samples, all));
  metric({{"step", step},
          {"held_out_loss", sum.mean()},
          {"bits_per_byte", sum.bits_per_byte()},
          {"held_out_tokens", sum.tokens}});
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

void Run::save(Trainer& trainer, std::int64_t step) {
  device_.synchronize();
  tell(writer_.save(step, owned_snapshot(trainer).pieces, run_state(config_, step, file_)));
}

/// The strongest stop that any rank has been asked for: the same on every rank.
RunEnd Run::agreed_stop() {
  Agreement ranks(*mesh_.host, mesh_.host->device().communicate());
  return static_cast<RunEnd>(ranks.largest(static_cast<std::int32_t>(options_.stop_requested()), "stop"));
}

RunEnd Run::train() {
  if (mesh_.world->rank() == 0) std::fputs(print(config_).c_str(), stdout);
  Trainer trainer(config_, device_, mesh_);
  describe(trainer);
  measure_peak(trainer);
  std::int64_t step = start(trainer);
  if (mesh_.world->rank() == 0) {
    truncate_metrics(options_.folder.metrics(), step);
    metrics_.open(options_.folder.metrics(), std::ios::app);
    std::ofstream(options_.folder.config()) << print(config_);
  }
  if (step >= config_.train.steps) say(fmt::format("all {} steps are done already", config_.train.steps));

  watchdog_.start();
  RunEnd end = RunEnd::done;
  const auto start_time = Clock::now();
  const std::int64_t first = step;
  while (step < config_.train.steps && end == RunEnd::done) {
    ++step;
    watchdog_.begin_step();
    const auto step_time = Clock::now();
    const StepResult result =
        trainer.step(step, [&](std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
          sampler_.train_sequence((step - 1) * config_.train.batch + index, inputs, targets);
          return std::int64_t{0};
        });
    watchdog_.end_step();
    if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
      tell(writer_.finish());
      say(fmt::format(
          "step {}: the loss is {}, the gradient norm {}; {}\n  why: the run has diverged, or a number overflowed\n"
          "  fix: go on from the last checkpoint with a lower optimizer.rate or a longer optimizer.warmup",
          step, result.loss, result.gradient_norm, describe_non_finite(trainer)));
      return RunEnd::failed;
    }
    report(result, step, seconds_since(step_time), seconds_since(start_time), step - first);
    tell(writer_.poll());
    const bool last = step == config_.train.steps;
    end = agreed_stop();
    const bool stopping = end != RunEnd::done;
    const auto due = [&](std::int64_t every) { return every > 0 && step % every == 0; };
    if (!stopping && (last || due(config_.train.evaluate_every))) evaluate(trainer, step);
    if (last || stopping || due(config_.checkpoint.every)) save(trainer, step);
  }
  tell(writer_.finish());
  watchdog_.stop();
  const bool saved = last_saved_ >= step;
  if (end != RunEnd::done)
    say(fmt::format("stopped after step {} as asked{}", step, saved ? "; --resume goes on" : ", but not saved"));
  return saved ? end : RunEnd::failed;
}

}  // namespace

RunEnd run_training(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, const CallRing& ring) {
  Run run(config, options, device, mesh, ring);
  return run.train();
}

}  // namespace choir
