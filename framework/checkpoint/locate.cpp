#include "framework/checkpoint/locate.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "framework/checkpoint/agreement.h"
#include "framework/checkpoint/publish.h"
#include "framework/checkpoint/reader.h"
#include "framework/core/error.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

enum class Kind : std::int32_t { missing, file, folder, checkpoint };  // ranks agree on the largest

/// `problem` is why the system cannot say whether the path exists; "" if it can.
Kind kind_of(const std::string& path, std::string& problem) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return Kind::missing;
  if (error) problem = error.message();
  if (is_checkpoint(path)) return Kind::checkpoint;
  return fs::is_directory(status) ? Kind::folder : Kind::file;
}

constexpr const char* what_there_is =
    "name the folder of a checkpoint, a run folder, or its checkpoints/; choir checkpoint list RUN lists the "
    "checkpoints of a run";

}  // namespace

bool is_checkpoint(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/manifest.json", error)) return true;
  return fs::is_directory(path, error) && step_of(fs::path(path + "/").parent_path().filename().string()) >= 0;
}

std::string checkpoints_folder(const std::string& path) {
  std::error_code error;
  const std::string inside = (fs::path(path) / "checkpoints").string();
  return fs::is_directory(inside, error) ? inside : path;
}

std::string locate_checkpoint(const CheckpointName& name, Communicator& world,
                              const std::function<void(const std::string&)>& say) {
  const std::string what = name.key + " = " + name.path;
  Agreement agreement(world);
  std::string problem;
  const auto mine = static_cast<std::int32_t>(kind_of(name.path, problem));
  const auto kind = static_cast<Kind>(agreement.largest(mine, "checkpoint.locate"));
  problem = agreement.first(problem, "checkpoint.locate");
  if (!problem.empty()) throw SharedError({.what = what + " cannot be read", .why = problem});
  if (kind == Kind::missing)
    throw ConfigError(Problem{.what = what + ": there is no such folder", .fix = what_there_is});
  if (kind == Kind::file) throw ConfigError(Problem{.what = what + ": this is not a folder", .fix = what_there_is});
  if (kind == Kind::checkpoint) {
    Condition condition = Condition::whole;
    const std::string damage = verify_together(name.path, world, &condition);
    if (condition == Condition::whole) return name.path;
    if (condition == Condition::unreadable) throw SharedError({.what = what + " cannot be read", .why = damage});
    throw ConfigError(Problem{.what = what + " is not a whole checkpoint: " + damage,
                              .fix = "name another one, or the run folder for its newest whole one"});
  }
  std::vector<CheckpointInfo> rejected;
  const auto found = find_latest(checkpoints_folder(name.path), world, rejected);
  if (found) {
    for (const CheckpointInfo& info : rejected) say(fmt::format("passing over {}: {}", info.path, info.problem));
    return found->path;
  }
  if (rejected.empty()) throw ConfigError(Problem{.what = what + " holds no checkpoint", .fix = what_there_is});
  const Problem none{.what = what + " holds no whole checkpoint", .why = list_of(rejected), .fix = what_there_is};
  const bool may_be_whole = std::any_of(rejected.begin(), rejected.end(), [](const CheckpointInfo& info) {
    return info.condition == Condition::unreadable;
  });
  if (may_be_whole) throw SharedError(none);
  throw ConfigError(none);
}

}  // namespace choir
