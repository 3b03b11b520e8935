#include "framework/checkpoint/publish.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>

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

std::vector<std::int64_t> list_steps(const std::string& folder) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  if (fs::status(folder, error).type() == fs::file_type::not_found) return steps;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (const std::int64_t step = step_of(entry->path().filename().string()); step >= 0) steps.push_back(step);
  if (error) throw Error({.what = "cannot list " + folder, .why = error.message()});
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
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
    throw Error({.what = temporary + "/manifest.json: what was read back is not what was written"});
  if (const std::string reason = look_at(temporary).problem; !reason.empty())
    throw Error({.what = temporary + " is not whole after it was written", .why = reason});
  check_global_file(temporary + "/checkpoint.h5", manifest);

  const std::string replaced = rename_over(temporary, folder + "/" + step_name(manifest.step));
  sync_folder(folder);
  if (!replaced.empty()) remove_folder(replaced);  // if that fails, sweep() removes it at the next start
}

std::string set_aside(const std::string& path) {
  for (int number = 1;; ++number) {
    const std::string aside = path + (number == 1 ? ".aside" : fmt::format(".aside-{}", number));
    std::error_code error;
    if (fs::symlink_status(aside, error).type() != fs::file_type::not_found) continue;
    fs::rename(path, aside, error);
    if (error) throw Error({.what = "cannot rename " + path + " to " + aside, .why = error.message()});
    return aside;
  }
}

Retention::Retention(std::string folder, const CheckpointConfig& config) : folder_(std::move(folder)), config_(config) {
  for (const std::int64_t step : list_steps(folder_)) {
    try {
      add(step, CheckpointReader(folder_ + "/" + step_name(step)).state());
    } catch (const std::exception&) {  // damaged or unreadable: --resume reports it
    }
  }
}

void Retention::add(std::int64_t step, const State& state) {
  double loss = std::numeric_limits<double>::infinity();
  if (const auto found = state.find("held_out_loss"); found != state.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), loss);
  whole_[step] = loss;
}

std::string Retention::prune() {
  std::string problems;
  std::int64_t best = -1;
  if (config_.best) {
    const auto found = std::min_element(whole_.begin(), whole_.end(),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
    if (found != whole_.end() && std::isfinite(found->second)) best = found->first;
  }
  if (best >= 0) {
    // A link is replaced by renaming another one over it, so that it exists at every moment.
    const std::string link = folder_ + "/best", fresh = link + ".tmp";
    std::error_code error;
    fs::remove(fresh, error);
    fs::create_symlink(step_name(best), fresh, error);
    if (!error) fs::rename(fresh, link, error);
    if (error) problems += fmt::format("cannot make the link {}: {}; ", link, error.message());
  }
  std::int64_t newer = 0;
  for (auto it = whole_.rbegin(); it != whole_.rend();) {
    const std::int64_t step = it->first;
    const bool stays = config_.keep <= 0 || newer < config_.keep || step == best ||
                       (config_.milestones > 0 && step % config_.milestones == 0);
    ++newer;
    ++it;
    if (stays) continue;
    const std::string path = folder_ + "/" + step_name(step), going = path + ".del";
    std::error_code error;
    fs::rename(path, going, error);
    const std::string reason = error ? error.message() : remove_folder(going);
    if (!reason.empty()) problems += fmt::format("cannot remove {}: {}; ", path, reason);
    it = std::make_reverse_iterator(whole_.erase(whole_.find(step)));
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
