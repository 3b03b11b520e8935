#include "framework/train/bad_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string_view>
#include <system_error>
#include <vector>

#include "framework/checkpoint/publish.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view prefix = "bad-step-";

/// Of all bad-step-... folders, the highest first.
std::vector<std::int64_t> list_bad_steps(const std::string& run) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator entry(run, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::int64_t step = 0;
    if (!name.starts_with(prefix)) continue;
    const auto [stop, problem] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
    if (problem == std::errc{} && stop == name.data() + name.size()) steps.push_back(step);
  }
  if (error) throw Error({.what = "cannot list " + run, .why = error.message()});
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

}  // namespace

void BadStep::add_to(State& state) const {
  state["bad_step"] = std::to_string(step);
  state["bad_samples"] = samples.text();
  state["bad_loss"] = fmt::format("{}", loss);
  state["bad_gradient_norm"] = fmt::format("{}", gradient_norm);
}

std::optional<BadStep> bad_step_of(const CheckpointReader& reader) {
  const auto text = [&](const char* key) {
    const auto found = reader.state().find(key);
    return found == reader.state().end() ? std::string() : found->second;
  };
  if (text("bad_step").empty()) return std::nullopt;
  const auto samples = LeftOut::parse(text("bad_samples"));
  const std::int64_t step = std::strtoll(text("bad_step").c_str(), nullptr, 10);
  if (!samples || step != reader.step() + 1)
    throw ConfigError(Problem{.what = reader.path() + " does not say which samples its bad step has read",
                              .why = "its state has other values than `choir train` writes"});
  return BadStep{.step = step,
                 .samples = *samples,
                 .loss = std::strtod(text("bad_loss").c_str(), nullptr),
                 .gradient_norm = std::strtod(text("bad_gradient_norm").c_str(), nullptr)};
}

std::optional<std::string> newest_bad_step(const std::string& run) {
  const std::vector<std::int64_t> steps = list_bad_steps(run);
  if (steps.empty()) return std::nullopt;
  return RunFolder{run}.bad_step(steps.front());
}

std::string prune_bad_steps(const std::string& run, std::int64_t keep) {
  if (keep == 0) return "";
  std::string problems;
  const std::vector<std::int64_t> steps = list_bad_steps(run);
  for (std::size_t i = static_cast<std::size_t>(keep); i < steps.size(); ++i) {
    const std::string problem = remove_folder(RunFolder{run}.bad_step(steps[i]));
    problems += (problems.empty() || problem.empty() ? "" : "; ") + problem;
  }
  return problems;
}

}  // namespace choir
