#include "framework/train/run.h"

#include <fmt/format.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>
#include <utility>

#include "framework/checkpoint/publish.h"
#include "framework/checkpoint/writer.h"
#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/train/bad_step.h"
#include "framework/train/dataset.h"
#include "framework/train/head_samples.h"
#include "framework/train/metrics_file.h"
#include "framework/train/non_finite.h"
#include "framework/train/product_rate.h"
#include "framework/train/progress.h"
#include "framework/train/snapshot.h"
#include "framework/train/state_check.h"
#include "framework/train/stragglers.h"
#include "framework/train/timed_products.h"
#include "framework/train/trainer.h"

namespace choir {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr char ranks_that_differ[] = "these ranks hold the same weights and optimizer state, and update them alike";
constexpr char state_of_products[] = "products";  // in checkpoints: ProductChoices::text()
constexpr char changed_between_updates[] = "only an update may change weights and optimizer state";

/// The bookkeeping of one run on one rank.
class Run {
 public:
  Run(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, Watchdog& watchdog)
      : config_(config),
        options_(options),
        mesh_(mesh),
        device_(device),
        watchdog_(watchdog),
        data_(open_dataset(config)),
        progress_(stdout, mesh.world->rank() == 0, options.columns),
        io_(StreamMode::threaded) {
    throw_if_any(data_->check_model());
  }
  ~Run() {
    watchdog_.watch({}, nullptr);
    spdlog::drop("rank");
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  RunEnd train();

 private:
  bool is_first() const { return mesh_.world->rank() == 0; }
  Agreement ranks() { return Agreement(*mesh_.host); }
  void say(const std::string& text) {
    if (text.empty()) return;
    progress_.say(text);
    log_ ? log_->info(text) : said_early_.push_back(text);
  }
  void metric(const nlohmann::ordered_json& line) {
    if (metrics_) say(metrics_->add(line.dump()));
  }
  void measure_peak(Trainer& trainer);
  void enter_folder();
  void load(Trainer& trainer);
  void resume_from(const CheckpointReader& reader, Trainer& trainer);
  State state_at(const RunPosition& position) const;
  void describe(Trainer& trainer);
  void recall_products(Trainer& trainer);
  void choose_products(Trainer& trainer);
  void report(const StepResult& result, double seconds, double run_seconds, std::int64_t steps_done);
  RunPosition position_ahead() const;
  bool is_awaited(std::int64_t step) const;
  void start_step(Trainer& trainer);
  RunEnd finish_step(Trainer& trainer);
  void report_heads(const HeadSamples& heads);
  bool evaluation_is_due() const;
  RunEnd evaluate(Trainer& trainer);
  RunEnd evaluate_what_was_missed(Trainer& trainer);
  void save(Trainer& trainer);
  void tell(const std::optional<SaveOutcome>& outcome);
  RunEnd agreed_stop(bool* comparison_is_due = nullptr);
  void compare_times();
  bool state_check_is_due(std::int64_t step) const {
    return config_.train.check_every > 0 && step % config_.train.check_every == 0;
  }
  void check_state(std::int64_t step, const std::string& difference, const std::string& why);
  void begin(Phase phase) { watchdog_.begin(phase, position_.step); }
  struct Reason {
    std::string why, fix;
  };
  Reason reason_of_divergence() const;
  Reason reason_of_rejection(const StepResult& result) const;
  std::string describe_rejected(Trainer& trainer, const StepResult& result);
  void save_bad_step(Trainer& trainer, const RunPosition& before, const StepResult& result);
  void record_rejected(const StepResult& result, std::int64_t step);
  void save_before(Trainer& trainer, const RunPosition& before);
  bool rewind(Trainer& trainer, const RunPosition& before);
  RunEnd reject(Trainer& trainer, RunPosition before, const StepResult& result);
  LeftOut batch_at(const RunPosition&) const;
  /// The sample after the last one that the step after `position` reads.
  std::int64_t end_of_batch(const RunPosition& position) const {
    return position.left_out.sample(position.samples, config_.train.batch - 1) + 1;
  }

  /// A step that the device may still compute. The host goes on meanwhile: it starts the next one, and then looks how
  /// this one has ended.
  struct InFlight {
    StepInFlight step;
    std::optional<HeadSamples> heads;  // if train.inspect_every asks for them
    Clock::time_point began;
  };

  const Config& config_;
  const RunOptions& options_;
  Mesh& mesh_;
  Device& device_;
  Watchdog& watchdog_;
  std::unique_ptr<Dataset> data_;
  std::optional<RunLock> lock_;  // of rank 0
  Start start_;
  RunPosition position_;            // after the last step that is done, and whose end is known
  std::deque<InFlight> in_flight_;  // the steps behind it
  std::optional<Stragglers> stragglers_;
  Clock::time_point steps_began_at_, last_finished_;
  std::int64_t steps_done_ = 0;  // accepted, by this process
  Progress progress_;
  std::shared_ptr<spdlog::logger> log_;  // in the run folder; until enter_folder() lines wait in memory
  std::vector<std::string> said_early_;
  Stream io_;  // the process's one HDF5 thread
  std::optional<CheckpointWriter> writer_;
  std::optional<StateCheck> state_check_;  // empty: never
  std::optional<MetricsFile> metrics_;     // of rank 0
  std::int64_t last_saved_ = 0;            // the seed gives step 0
  double product_flops_per_second_ = 0;    // the fastest matrix product measured on this rank
  double peak_flops_per_second_ = 0;       // the sum of these over all ranks
  bool told_of_peak_ = false;
  std::string load_began_, steps_began_;  // in the first line of metrics.jsonl of this process
  std::string products_;                  // ProductChoices::text() of those in use; empty: none
  bool times_products_ = false;           // after the next step
  std::int64_t rejected_ = 0;             // steps, since the last one that was accepted
  std::int64_t last_rejected_ = 0;        // step
};

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

/// From this call on, the run folder is changed.
void Run::enter_folder() {
  std::vector<std::string> notes;
  const auto prepare = [&] {
    notes = prepare_folder(options_.folder, config_, start_);
    metrics_.emplace(options_.folder.metrics());
  };
  ranks().on_rank_0(prepare, "start.prepare");
  options_.folder.create();  // a file system may show other hosts late what rank 0 has made
  watchdog_.ring().keep_in(options_.folder.calls(mesh_.world->rank()));
  log_ = spdlog::basic_logger_mt("rank", options_.folder.log(mesh_.world->rank()));
  log_->flush_on(spdlog::level::info);
  for (const std::string& line : said_early_) log_->info(line);
  for (const std::string& line : notes) say(line);
  const auto published = [folder = options_.folder, record = start_.record](std::int64_t step) mutable {
    record.published = step;
    publish_record(folder, record);
  };
  writer_.emplace(options_.folder.checkpoints(), config_.checkpoint, *mesh_.host, io_, published);
}

/// The position of a checkpoint whose tensors `trainer` has.
void Run::resume_from(const CheckpointReader& reader, Trainer& trainer) {
  position_ = position_of(reader);
  position_.first_held_out = data_->first_held_out();
  position_.run = start_.record.id;
  trainer.set_spike_window(position_.spike_window);
  last_saved_ = reader.step();
}

/// The tensors of the checkpoint that the run starts from, if any, and its position.
void Run::load(Trainer& trainer) {
  if (start_.resumes) {
    const CheckpointReader& reader = *start_.checkpoint;
    const std::string lacking = load_all(trainer, reader);
    if (!lacking.empty())
      say(fmt::format("the checkpoint has no {} of optimizer.kind = {}: it starts at zero", lacking,
                      name_of(config_.optimizer.kind)));
    resume_from(reader, trainer);
  } else if (start_.checkpoint) {
    const std::string fresh = load_weights(trainer, *start_.checkpoint);
    if (!fresh.empty()) say(fmt::format("the checkpoint is of an encoder: {} has its start values", fresh));
  }
  position_.first_held_out = data_->first_held_out();
  position_.run = start_.record.id;
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

State Run::state_at(const RunPosition& position) const {
  State state = run_state(config_, position, *data_);
  if (!products_.empty()) state[state_of_products] = products_;
  return state;
}

/// With train.time_products: the choices of the checkpoint, if they hold here, or others when the first step is done.
/// Collective.
void Run::recall_products(Trainer& trainer) {
  if (!config_.train.time_products) return;
  if (device_.kind() == DeviceKind::cpu) return say("train.time_products is of a GPU: on the CPU nothing is timed");
  if constexpr (kernels::built_with_cuda) {
    const State state = start_.resumes ? start_.checkpoint->state() : State{};
    const auto stored = state.find(state_of_products);
    const ProductChoices choices = ProductChoices::parse(stored == state.end() ? "" : stored->second);
    const std::string here = place_of_products(trainer);
    times_products_ = ranks().largest(choices.place == here ? 0 : 1, "products") != 0;
    if (!times_products_) {
      use_products(trainer, choices);
      products_ = choices.text();
      say(fmt::format("train.time_products: the choices of the checkpoint for {} are used",
                      quantity(std::ssize(choices.algorithms), "product")));
    } else if (!choices.place.empty()) {
      say(
          fmt::format("train.time_products: products are timed again when a step is done, so the numbers change\n"
                      "  why: they were timed on {}; this is {}",
                      choices.place, here));
    }
  }
}

/// Collective.
void Run::choose_products(Trainer& trainer) {
  times_products_ = false;
  if constexpr (kernels::built_with_cuda) {
    begin(Phase::load);
    std::string report;
    const ProductChoices choices = time_products(trainer, report);
    say(report);
    if (choices.place.empty()) return;
    products_ = choices.text();
    ranks().on_rank_0([&] { publish_text(options_.folder.path + "/products.txt", products_); }, "products");
  }
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

/// True if the step just done ends with an evaluation on held-out text.
bool Run::evaluation_is_due() const {
  const std::int64_t every = config_.train.evaluate_every, step = position_.step;
  return step > 0 && (step == config_.train.steps || (every > 0 && step % every == 0));
}

/// If a signal comes meanwhile, returns how the run is to end; the evaluation is then left to --resume.
RunEnd Run::evaluate(Trainer& trainer) {
  const HeldOut samples = data_->held_out();
  if (samples.all == 0) return RunEnd::done;
  begin(Phase::evaluate);
  RunEnd end = RunEnd::done;
  const std::optional<LossSum> sum =
      trainer.evaluate(samples.samples, samples.read, [&] { return (end = agreed_stop()) != RunEnd::done; });
  if (!sum) return end;
  begin(Phase::record);
  say(fmt::format("step {}: held-out {} ({} of {})", position_.step, choir::describe(*sum, config_.model),
                  samples.samples, quantity(samples.all, samples_noun(config_.model))));
  nlohmann::ordered_json line = {
      {"step", position_.step}, {"time", utc_now()}, {"held_out_loss", sum->mean()}, {"held_out_tokens", sum->tokens}};
  if (config_.model.is_classifier())
    line["accuracy"] = sum->accuracy();
  else
    line["bits_per_byte"] = sum->bits_per_byte();
  metric(line);
  position_.held_out_loss = sum->mean();
  return RunEnd::done;
}

/// A run that was stopped during an evaluation has saved a checkpoint without its result.
RunEnd Run::evaluate_what_was_missed(Trainer& trainer) {
  if (!start_.resumes || !evaluation_is_due()) return RunEnd::done;
  std::int32_t missing = 0;
  const auto look = [&] { missing = has_evaluation(options_.folder, position_.step) ? 0 : 1; };
  ranks().on_rank_0(look, "start.evaluation");
  if (ranks().largest(missing, "start.evaluation") == 0) return RunEnd::done;
  return evaluate(trainer);
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

/// Ends the run if `difference` says what differs in step `step`. What the ranks hold is then not saved.
void Run::check_state(std::int64_t step, const std::string& difference, const std::string& why) {
  if (difference.empty()) return;
  tell(writer_->finish());  // it was compared before it was saved
  throw SharedError(
      {.what = fmt::format("step {}: other bits than they should have: {}", step, difference),
       .why = why + "; a fault of memory or of a processor is likely",
       .fix = fmt::format("go on with --resume, from the checkpoint before it{}; if the same rank is named "
                          "again, leave its host out",
                          last_saved_ > 0 ? fmt::format(" (step {})", last_saved_) : "")});
}

void Run::save(Trainer& trainer) {
  begin(Phase::save);
  device_.synchronize();
  if (state_check_) check_state(position_.step, state_check_->compare(), ranks_that_differ);
  position_.optimizer_origin = trainer.optimizer().state_origin();
  position_.spike_window = trainer.spike_window();
  tell(writer_->save(position_.step, owned_snapshot(trainer).pieces, state_at(position_)));
}

/// The most urgent end that a signal to any rank asks for, and whether a comparison is due on any; the same on every
/// rank.
RunEnd Run::agreed_stop(bool* comparison_is_due) {
  const std::int32_t due = comparison_is_due && *comparison_is_due ? 1 : 0;
  const std::int32_t agreed = ranks().largest(2 * static_cast<std::int32_t>(options_.stop_request().end) + due, "stop");
  if (comparison_is_due) *comparison_is_due = agreed % 2 == 1;
  return static_cast<RunEnd>(agreed / 2);
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

/// Why the loss or the gradients of this step are not finite, and what helps. The first step shows the weights with
/// which this process began; no learning rate of it has changed them.
Run::Reason Run::reason_of_divergence() const {
  const std::string lower = "a lower optimizer.rate or a longer optimizer.warmup";
  const std::int64_t begin = start_.step();
  if (position_.step > begin + 1)
    return {.why = "the run has diverged, or a number overflowed",
            .fix = last_saved_ > 0
                       ? fmt::format("go on from the checkpoint of step {} with --resume and {}; if it diverges "
                                     "again, from an earlier one with --resume=STEP",
                                     last_saved_, lower)
                       : "no checkpoint has been saved: start again with " + lower};
  if (!start_.resumes)
    return {.why = "a number overflowed; the learning rate is not the cause, since no step has changed the weights",
            .fix = "set a smaller model.initial_deviation, train.precision=f32, or with train.from other weights"};
  const std::vector<std::int64_t> steps = list_steps(options_.folder.checkpoints());
  const bool has_earlier = std::any_of(steps.begin(), steps.end(), [&](std::int64_t step) { return step < begin; });
  return {.why = fmt::format("the weights of the checkpoint of step {} lead to it: the run had diverged before", begin),
          .fix = has_earlier ? "go on from an earlier checkpoint with --resume=STEP and " + lower
                             : "there is no earlier checkpoint: start a new run in another train.folder with " + lower};
}

static bool is_finite(const StepResult& result) {
  return std::isfinite(result.loss) && std::isfinite(result.gradient_norm);
}

Run::Reason Run::reason_of_rejection(const StepResult& result) const {
  if (config_.train.spike.action != SpikeAction::stop)
    return {
        .why = fmt::format("{} steps in a row were rejected, more than train.spike.most = {}", rejected_,
                           config_.train.spike.most),
        .fix = "set a lower optimizer.rate, a larger train.spike.sigma or train.spike.most, and go on with --resume"};
  if (!is_finite(result)) return reason_of_divergence();
  return {.why = "train.spike.action = stop ends a run at a spike",
          .fix = fmt::format("look at it with `choir replay {}`; go on with --resume and train.spike.action=skip, "
                             "which leaves this batch out",
                             options_.folder.bad_step(position_.step))};
}

/// "step 12: the loss is 8.1, the gradient norm 3.2; ...". Collective.
std::string Run::describe_rejected(Trainer& trainer, const StepResult& result) {
  const auto number = [](double value) { return std::isnan(value) ? "nan" : fmt::format("{}", value); };  // not -nan
  const auto above = [](double deviations) { return fmt::format("{:.3g} standard deviations above", deviations); };
  return fmt::format("step {}: the loss is {}, the gradient norm {}; {}", position_.step, number(result.loss),
                     number(result.gradient_norm),
                     is_finite(result) ? fmt::format("these are {} and {} their means over the last steps",
                                                     above(result.loss_deviations), above(result.norm_deviations))
                                       : describe_non_finite(trainer));
}

/// The samples that the step after `position` reads.
LeftOut Run::batch_at(const RunPosition& position) const {
  LeftOut batch;
  for (std::int64_t i = 0; i < config_.train.batch; ++i) {
    const std::int64_t sample = position.left_out.sample(position.samples, i);
    batch.add(sample, sample + 1);
  }
  return batch;
}

/// The state before a rejected step, for `choir replay`.
void Run::save_bad_step(Trainer& trainer, const RunPosition& before, const StepResult& result) {
  const std::string folder = options_.folder.bad_step(position_.step);
  State state = state_at(before);
  const BadStep bad{
      .step = position_.step, .samples = batch_at(before), .loss = result.loss, .gradient_norm = result.gradient_norm};
  bad.add_to(state);
  std::string problem;
  try {
    CheckpointWriter writer(folder, {.keep = 0, .best = false}, *mesh_.host, io_);
    writer.save(before.step, owned_snapshot(trainer).pieces, state);
    const std::optional<SaveOutcome> outcome = writer.finish();
    if (!outcome->saved) problem = outcome->text;
  } catch (const SharedError& error) {
    problem = error.what();
  }
  if (problem.empty())
    say(fmt::format("saved the state before it as {}: `choir replay {}` looks for the reason", folder, folder));
  else
    say(fmt::format("could not save the state before it as {}: {}", folder, problem));
  if (is_first()) say(prune_bad_steps(options_.folder.path, config_.checkpoint.keep));
}

/// `step`: the step after which the line stands in metrics.jsonl.
void Run::record_rejected(const StepResult& result, std::int64_t step) {
  nlohmann::ordered_json line = {{"step", step}, {"time", utc_now()}, {"rejected_step", last_rejected_}};
  if (std::isfinite(result.loss)) line["rejected_loss"] = result.loss;  // JSON has no other numbers
  if (std::isfinite(result.gradient_norm)) line["rejected_gradient_norm"] = result.gradient_norm;
  line["action"] = name_of(config_.train.spike.action);
  metric(line);
}

/// The state before the rejected step, as a checkpoint of the run, unless it is one already or is not good: its loss is
/// not finite without an update, either. Collective.
void Run::save_before(Trainer& trainer, const RunPosition& before) {
  if (before.step <= last_saved_) return;
  const LossSum sum = trainer.evaluate(config_.train.batch, training_batch(*data_, before.samples, before.left_out));
  if (!std::isfinite(sum.loss)) return;
  tell(writer_->save(before.step, owned_snapshot(trainer).pieces, state_at(before)));
  tell(writer_->finish());
}

/// Goes back to the newest checkpoint and leaves out the batch after `before`. False: there is no checkpoint.
/// Collective.
bool Run::rewind(Trainer& trainer, const RunPosition& before) {
  begin(Phase::load);
  std::vector<CheckpointInfo> rejected;
  const auto found = find_latest(options_.folder.checkpoints(), *mesh_.host, rejected);
  for (const CheckpointInfo& info : rejected) say("rejected " + info.path + ": " + info.problem);
  if (!found) return false;
  const CheckpointReader reader(found->path);
  load_all(trainer, reader);
  resume_from(reader, trainer);
  position_.left_out = before.left_out;
  position_.left_out.add(before.samples, end_of_batch(before));
  const auto cut = [&] {
    say(metrics_->retry());
    metrics_.reset();
    cut_metrics(options_.folder, position_.step);
    metrics_.emplace(options_.folder.metrics());
  };
  ranks().on_rank_0(cut, "rewind.metrics");
  return true;
}

/// After a step that has changed nothing: done, to go on, or not_finite. `before` is the position before the step.
RunEnd Run::reject(Trainer& trainer, RunPosition before, const StepResult& result) {
  begin(Phase::save);
  const bool is_overtaken = !in_flight_.empty();
  in_flight_.clear();  // the device has rejected them too
  stragglers_->forget_steps();
  if (is_overtaken && !is_finite(result))  // their gradients have taken the place of those that are to be described
    trainer.compute_gradients(position_.step, training_batch(*data_, before.samples, before.left_out));
  device_.synchronize();
  tell(writer_->finish());
  before.optimizer_origin = trainer.optimizer().state_origin() - 1;
  before.spike_window = trainer.spike_window();
  const SpikeConfig& spike = config_.train.spike;
  last_rejected_ = position_.step;
  const bool ends = spike.action == SpikeAction::stop || ++rejected_ > spike.most;
  say(describe_rejected(trainer, result));
  if (rejected_ <= 1) save_bad_step(trainer, before, result);  // a next step in a row starts from the same state
  if (ends) {
    save_before(trainer, before);
    const Reason reason = reason_of_rejection(result);
    say(fmt::format("the run ends before step {}\n  why: {}\n  fix: {}", position_.step, reason.why, reason.fix));
    return RunEnd::not_finite;
  }
  const std::string batch = batch_at(before).text();
  if (spike.action == SpikeAction::rewind && rewind(trainer, before)) {
    say(fmt::format("went back to the checkpoint of step {}; samples {} are left out ({} in a row)", position_.step,
                    batch, quantity(rejected_, "step")));
    record_rejected(result, position_.step);
    return RunEnd::done;
  }
  position_.samples = end_of_batch(before);
  say(fmt::format("going on with the next batch; samples {} are left out ({} in a row){}", batch,
                  quantity(rejected_, "step"),
                  spike.action == SpikeAction::rewind ? "; there is no checkpoint to go back to" : ""));
  record_rejected(result, position_.step);
  return RunEnd::done;
}

/// The position after the steps in flight if they are accepted.
RunPosition Run::position_ahead() const {
  RunPosition position = position_;
  for (std::size_t i = 0; i < in_flight_.size(); ++i, ++position.step) position.samples = end_of_batch(position);
  return position;
}

/// True if the host has to know how step `step`, the last one in flight, ends before it starts the next one.
bool Run::is_awaited(std::int64_t step) const {
  const auto is_due = [&](std::int64_t every) { return every > 0 && step % every == 0; };
  const auto done = static_cast<std::uint64_t>(steps_done_ + std::ssize(in_flight_));
  return step == config_.train.steps || is_due(config_.train.evaluate_every) || is_due(config_.checkpoint.every) ||
         state_check_is_due(step) || state_check_is_due(step + 1) || std::has_single_bit(done);  // measure_peak()
}

/// The step behind those in flight.
void Run::start_step(Trainer& trainer) {
  const RunPosition before = position_ahead();
  const std::int64_t step = before.step + 1;
  watchdog_.begin(Phase::step, step);
  InFlight next{.began = Clock::now()};
  const ReadSample read = training_batch(*data_, before.samples, before.left_out);
  // Also that of a step after a rejected one, unless the run is rewound: the trainer then does not take it.
  const bool is_last = step == config_.train.steps;
  const ReadSample read_next = is_last ? ReadSample{} : training_batch(*data_, end_of_batch(before), before.left_out);
  const bool inspects = config_.train.inspect_every > 0 && step % config_.train.inspect_every == 0;
  AttentionRecord attention;
  trainer.set_attention(inspects ? &attention : nullptr, 1);
  stragglers_->begin_step();
  next.step = trainer.start_step(
      step, read,
      [&] {
        if (state_check_ && state_check_is_due(step))
          check_state(step, state_check_->unchanged(), changed_between_updates);
        if (!inspects) return;
        SampleBuffer first(config_.model);
        read(0, first.view());
        next.heads = sample_heads(trainer, std::exchange(attention, {}), first);
      },
      read_next);
  stragglers_->end_step();
  trainer.set_attention(nullptr);
  in_flight_.push_back(std::move(next));
}

/// Waits for the oldest step in flight and records how it has ended. Returns done, to go on, or how the run ends.
RunEnd Run::finish_step(Trainer& trainer) {
  const InFlight oldest = std::move(in_flight_.front());
  in_flight_.pop_front();
  watchdog_.begin(Phase::step, position_.step + 1);
  const StepResult result = trainer.finish_step(oldest.step);
  stragglers_->finish_step();
  const double seconds = seconds_since(std::max(oldest.began, last_finished_));
  last_finished_ = Clock::now();
  const RunPosition before = position_;
  ++position_.step;
  position_.held_out_loss.reset();
  begin(Phase::record);
  if (!result.accepted) return reject(trainer, before, result);
  if (position_.step >= last_rejected_) rejected_ = 0;  // after a rewind, steps before it do not count
  position_.samples = end_of_batch(before);
  report(result, seconds, seconds_since(steps_began_at_), ++steps_done_);
  if (oldest.heads) report_heads(*oldest.heads);
  if (std::has_single_bit(static_cast<std::uint64_t>(steps_done_))) measure_peak(trainer);  // after 1, 2, 4, ...
  return RunEnd::done;
}

RunEnd Run::train() {
  watchdog_.watch(mesh_.communicators(), &io_);
  const LockWait wait{.seconds = config_.train.lock_wait,
                      .stopped = [this] { return options_.stop_request().end != RunEnd::done; },
                      .say = [this](const std::string& text) { say(text); }};
  start_ = find_start(config_, options_.folder, options_.resume, wait, *data_, mesh_, lock_);
  data_->split(start_.resumes ? &*start_.checkpoint : nullptr);
  if (is_first()) std::fputs(print(config_).c_str(), stdout);
  // A signal that came while MPI started: nothing has been changed.
  if (const RunEnd end = agreed_stop(); end != RunEnd::done) {
    say("stopped before the first step as asked; the run folder is as it was");
    return end;
  }
  begin(Phase::load);
  load_began_ = utc_now();
  Trainer trainer(config_, device_, mesh_);
  const struct Ends {
    std::optional<StateCheck>& check;
    ~Ends() { check.reset(); }
  } before_the_trainer{state_check_};  // whose tensors it holds
  load(trainer);
  enter_folder();
  describe(trainer);
  recall_products(trainer);
  for (const std::string& note : start_.notes) say(note);

  RunEnd end = agreed_stop();
  if (end == RunEnd::done) end = evaluate_what_was_missed(trainer);
  if (position_.step >= config_.train.steps) say(fmt::format("all {} steps are done already", config_.train.steps));
  if (config_.train.check_every > 0) state_check_.emplace(trainer);
  if (state_check_ && state_check_is_due(position_.step + 1)) state_check_->remember();
  stragglers_.emplace(config_, device_, mesh_, watchdog_.ring());
  // A stream that runs work at once has nothing to do while the host goes on.
  const std::size_t most_ahead = device_.compute().mode() == StreamMode::immediate ? 0 : 1;
  steps_began_at_ = Clock::now();
  steps_began_ = utc_now();
  while (position_.step < config_.train.steps && end == RunEnd::done) {
    const std::int64_t before = position_.step;
    start_step(trainer);
    std::size_t ahead = is_awaited(position_ahead().step) ? 0 : most_ahead;
    while (in_flight_.size() > ahead) {
      if (const RunEnd ended = finish_step(trainer); ended != RunEnd::done) return ended;
      tell(writer_->poll());
      bool comparison_is_due = stragglers_->is_due();
      end = agreed_stop(&comparison_is_due);
      if (comparison_is_due) compare_times();
      if (end != RunEnd::done) ahead = 0;  // what is saved has its verdict
    }
    if (!in_flight_.empty()) continue;
    if (times_products_) choose_products(trainer);
    const bool went_back = position_.step <= before;
    if (state_check_ && !went_back && state_check_is_due(position_.step))
      check_state(position_.step, state_check_->compare(), ranks_that_differ);
    if (state_check_ && state_check_is_due(position_.step + 1)) state_check_->remember();
    if (went_back) continue;
    if (end == RunEnd::done && evaluation_is_due()) end = evaluate(trainer);
    const bool due = config_.checkpoint.every > 0 && position_.step % config_.checkpoint.every == 0;
    if (due || end != RunEnd::done || position_.step == config_.train.steps) save(trainer);
  }
  begin(Phase::save);
  tell(writer_->finish());
  begin(Phase::end);
  const bool saved = last_saved_ >= position_.step;
  if (end != RunEnd::done)
    say(fmt::format("stopped {} {} as asked{}", position_.step > 0 ? "after step" : "before step",
                    std::max<std::int64_t>(1, position_.step),
                    saved ? "; --resume continues the run" : ", but not saved"));
  if (metrics_) say(metrics_->retry());
  const std::int32_t lost = metrics_ && metrics_->missing() > 0 ? 1 : 0;
  if (lost != 0)
    say(fmt::format("{}: {} lines are missing: {}", options_.folder.metrics(), metrics_->missing(),
                    metrics_->reason()));
  return saved && ranks().largest(lost, "metrics") == 0 ? end : RunEnd::failed;
}

}  // namespace

RunEnd run_training(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, Watchdog& watchdog) {
  Run run(config, options, device, mesh, watchdog);
  return run.train();
}

}  // namespace choir
