// Steps that change nothing, since their loss or gradients are not finite or a spike: what is said and saved, and how
// the run goes on.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "framework/checkpoint/publish.h"
#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/train/bad_step.h"
#include "framework/train/non_finite.h"
#include "framework/train/run_bookkeeping.h"

namespace choir {

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

}  // namespace choir
