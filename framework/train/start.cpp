#include "framework/train/start.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "framework/checkpoint/agreement.h"
#include "framework/checkpoint/locate.h"
#include "framework/checkpoint/publish.h"
#include "framework/core/error.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

/// What rank 0 sees in a run folder.
struct Look {
  std::optional<RunRecord> record;
  std::vector<std::int64_t> steps;  // newest first

  std::int64_t published() const { return last_published(record, steps); }
};

Look look_into(const RunFolder& folder) { return {read_record(folder), list_steps(folder.checkpoints())}; }

/// Throws ConfigError if the folder does not fit what the user asked for.
void check_folder(const RunFolder& folder, const Look& look, const Resume& resume) {
  if (!resume.asked && look.published() > 0)
    throw ConfigError(
        Problem{.what = fmt::format("train.folder = {} already holds a run, at step {}", folder.path, look.published()),
                .why = "a new run there would mix with it",
                .fix = "go on with --resume, or set train.folder to another folder"});
  if (resume.step && std::find(look.steps.begin(), look.steps.end(), *resume.step) == look.steps.end())
    throw ConfigError(Problem{.what = fmt::format("--resume={}: {} has no checkpoint of step {}", *resume.step,
                                                  folder.checkpoints(), *resume.step),
                              .fix = look.steps.empty()
                                         ? "it holds no checkpoint"
                                         : fmt::format("it has those of steps {}", fmt::join(look.steps, ", "))});
}

/// Throws SharedError if a run that continues from `found`, or starts at step 1 if nothing was found, would ignore a
/// checkpoint that may be whole.
void check_nothing_is_lost(const RunFolder& folder, const std::optional<CheckpointInfo>& found,
                           const std::vector<CheckpointInfo>& rejected, std::int64_t published) {
  const bool unreadable = std::any_of(rejected.begin(), rejected.end(), [](const CheckpointInfo& info) {
    return info.condition == Condition::unreadable;
  });
  if (found && unreadable)
    throw SharedError({.what = "train.folder = " + folder.path + " has newer checkpoints that cannot be read",
                       .why = list_of(rejected),
                       .fix = fmt::format("make them readable and start again; or go on from step {} with --resume={}, "
                                          "and the later ones are kept aside",
                                          found->step, found->step)});
  if (found || published == 0) return;
  throw SharedError(
      {.what = fmt::format("train.folder = {}: the run has published checkpoints, the last of step {}, but none of "
                           "them can be used",
                           folder.path, published),
       .why = rejected.empty() ? folder.checkpoints() + " holds no checkpoint: is its file system mounted?"
                               : list_of(rejected),
       .fix = "make them readable or restore a copy, and start again; for a new run name another train.folder"});
}

/// The checkpoint to resume from, verified by all ranks, or nothing; `rejected` are newer ones that are not whole.
std::optional<CheckpointInfo> find_checkpoint_to_resume(const RunFolder& folder, const Resume& resume, Mesh& mesh,
                                                        std::vector<CheckpointInfo>& rejected) {
  if (!resume.step) return find_latest(folder.checkpoints(), *mesh.host, rejected);
  CheckpointInfo info{*resume.step, folder.checkpoints() + "/" + step_name(*resume.step), "", Condition::whole};
  info.problem = verify_together(info.path, *mesh.host, &info.condition);
  if (info.condition == Condition::whole) return info;
  throw SharedError({.what = fmt::format("--resume={}: {} cannot be used", *resume.step, info.path),
                     .why = info.problem,
                     .fix = "name another step, or --resume alone for the newest whole checkpoint"});
}

void check_data(const Config& config, const Dataset& data, const CheckpointReader& reader) {
  if (!data.is_that_of(reader))
    throw ConfigError(
        Problem{.what = "data.path = " + config.data.path + " holds other data than the run was started with",
                .why = "a resumed run sees the same samples",
                .fix = "name the file of the run"});
}

CheckpointReader open_weights(const Config& config, const Dataset& data, Mesh& mesh, std::vector<std::string>& notes) {
  CheckpointReader reader(locate_checkpoint({"train.from", config.train.from}, *mesh.host,
                                            [&](const std::string& text) { notes.push_back(text); }));
  throw_if_any(data.check_weights(reader));
  return reader;
}

}  // namespace

Start find_start(const Config& config, const RunFolder& folder, const Resume& resume, const LockWait& wait,
                 const Dataset& data, Mesh& mesh, std::optional<RunLock>& lock) {
  Agreement ranks(*mesh.host);
  Start start;
  Look look;
  const auto take = [&] {
    if (!wait_until_free(folder, wait)) return;       // stopped
    check_folder(folder, look_into(folder), resume);  // before the lock, which writes to the folder
    lock.emplace(folder);
    look = look_into(folder);
    check_folder(folder, look, resume);
  };
  ranks.on_rank_0(take, "start.folder");
  const std::int64_t published = ranks.largest(static_cast<std::int32_t>(look.published()), "start.published");
  const bool continues = resume.asked && look.record;
  start.record.id = ranks.broadcast(continues ? look.record->id : new_run_id(), 0, "start.run");
  start.record.published = published;
  if (lock && !lock->note().empty()) start.notes.push_back(lock->note());

  if (!resume.asked) {
    if (config.train.from.empty()) return start;
    start.checkpoint = open_weights(config, data, mesh, start.notes);
    start.notes.push_back("starting from the weights of " + start.checkpoint->path());
    return start;
  }
  std::vector<CheckpointInfo> rejected;
  const auto found = find_checkpoint_to_resume(folder, resume, mesh, rejected);
  for (const CheckpointInfo& info : rejected) start.notes.push_back("rejected " + info.path + ": " + info.problem);
  check_nothing_is_lost(folder, found, rejected, published);
  if (!found) {
    start.notes.push_back("no checkpoint has been published in " + folder.path + ": starting at step 1");
    return start;
  }
  start.resumes = true;
  start.checkpoint.emplace(found->path);
  const Config then = config_of(*start.checkpoint);
  throw_if_any(check_resume(then, config));
  check_data(config, data, *start.checkpoint);
  for (const std::int64_t step : look.steps)  // of rank 0, which sets them aside
    if (step > found->step) start.newer.push_back(folder.checkpoints() + "/" + step_name(step));
  start.notes.push_back(fmt::format("resuming {} after step {}", found->path, found->step));
  for (const std::string& line : describe_changes(then, config, found->step)) start.notes.push_back(line);
  return start;
}

std::vector<std::string> prepare_folder(const RunFolder& folder, const Config& config, const Start& start) {
  std::vector<std::string> notes;
  folder.create();
  for (const std::string& path : start.newer) notes.push_back("kept " + path + " as " + set_aside(path));
  if (!start.resumes || !start.newer.empty()) {
    const std::string aside = set_metrics_aside(folder);
    if (!aside.empty()) notes.push_back("kept " + folder.metrics() + " as " + aside);
  }
  cut_metrics(folder, start.step());
  publish_text(folder.config(), print(config));
  publish_record(folder, start.record);
  return notes;
}

}  // namespace choir
