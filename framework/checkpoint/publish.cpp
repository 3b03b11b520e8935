#include "framework/checkpoint/publish.h"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>

#include "framework/checkpoint/global_file.h"
#include "framework/checkpoint/reader.h"
#include "framework/core/error.h"

namespace choir {
namespace fs = std::filesystem;

std::string step_name(std::int64_t step) { return fmt::format("step-{:08d}", step); }

std::int64_t step_of(const std::string& name) {
  std::int64_t step = -1;
  if (name.starts_with("step-")) std::from_chars(name.data() + 5, name.data() + name.size(), step);
  return step >= 0 && name == step_name(step) ? step : -1;
}

void publish(const std::string& folder, const std::string& temporary, Manifest manifest) {
  manifest.files.push_back(write_global_file(temporary, manifest));
  if (const std::string reason = inconsistency(manifest); !reason.empty())
    throw Error({.what = reason,
                 .why = "every element of every tensor has to be handed over by exactly one rank",
                 .fix = "this is a mistake in the program that saves, not in its configuration"});
  const std::string text = to_text(manifest);
  write_text(temporary + "/manifest.json", text);
  sync_folder(temporary);

  if (read_text(temporary + "/manifest.json") != text)
    throw Error({.what = temporary + "/manifest.json does not read as it was written"});
  if (const std::string reason = look_at(temporary).problem; !reason.empty())
    throw Error({.what = temporary + " is not whole after it was written", .why = reason});
  check_global_file(temporary + "/checkpoint.h5", manifest);

  const std::string replaced = rename_over(temporary, folder + "/" + step_name(manifest.step));
  sync_folder(folder);
  if (!replaced.empty()) remove_folder(replaced);  // else the next start sweeps it
}

std::string prune(const std::string& folder, std::int64_t step, std::int64_t keep) {
  std::string problems;
  std::int64_t whole = 0;
  for (const CheckpointInfo& found : list_checkpoints(folder)) {
    if (keep <= 0 || found.step > step) continue;
    if (whole < keep) {
      whole += found.problem.empty() ? 1 : 0;
      continue;
    }
    const std::string aside = found.path + ".del";
    std::error_code error;
    fs::rename(found.path, aside, error);
    const std::string reason = error ? error.message() : remove_folder(aside);
    if (!reason.empty()) problems += fmt::format("cannot remove {}: {}; ", found.path, reason);
  }
  return problems;
}

std::string sweep(const std::string& folder) {
  std::string problems;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    if ((extension != ".tmp" && extension != ".del") || step_of(entry->path().stem().string()) < 0) continue;
    const std::string reason = remove_folder(entry->path().string());
    if (!reason.empty()) problems += fmt::format("cannot remove {}: {}; ", entry->path().string(), reason);
  }
  return problems;
}

std::string remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return error ? error.message() : "";
}

}  // namespace choir
