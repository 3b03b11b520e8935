#include "framework/train/run.h"

#include <fmt/format.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <utility>

#include "framework/checkpoint/publish.h"
#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/train/run_bookkeeping.h"
#include "framework/train/timed_products.h"

namespace choir {
namespace {

double seconds_since(Run::Clock::time_point start) {
  return std::chrono::duration<double>(Run::Clock::now() - start).count();
}

constexpr char ranks_that_differ[] = "these ranks hold the same weights and optimizer state, and update them alike";
constexpr char state_of_products[] = "products";  // in checkpoints: ProductChoices::text()
constexpr char changed_between_updates[] = "only an update may change weights and optimizer state";

}  // namespace

Run::Run(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, Watchdog& watchdog)
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

Run::~Run() {
  watchdog_.watch({}, nullptr);
  spdlog::drop("rank");
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
  Trainer& trainer = trainer_.emplace(config_, device_, mesh_);
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

RunEnd run_training(const Config& config, const RunOptions& options, Device& device, Mesh& mesh, Watchdog& watchdog) {
  Run run(config, options, device, mesh, watchdog);
  return run.train();
}

}  // namespace choir
