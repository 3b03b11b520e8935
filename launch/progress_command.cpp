// choir progress RUN: how far a run has come, and the time that its steps took. For launch/supervise. Prints "KEY
// VALUE" lines; times are milliseconds since the epoch, 0 if nothing is known:
//
//   published N     the step of the checkpoint published last
//   step N          the last step in metrics.jsonl
//   ended T         when this step had ended
//   useful MS       time of the steps after --after, each counted once
//   repeated MS     time of the steps after the checkpoint published last
//   load T          when the last process that did a step had its folder and began to load
//   first_step T    when it began its first step
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/publish.h"
#include "framework/train/run_folder.h"
#include "launch/command_line.h"

namespace choir {
namespace {

/// Of what utc_now() writes, "2026-01-01T12:00:00.000Z"; 0 for anything else.
long long milliseconds(const std::string& text) {
  std::tm parts = {};
  const char* rest = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr || *rest != '.') return 0;
  return static_cast<long long>(timegm(&parts)) * 1000 + std::atoi(rest + 1);
}

struct Progress {
  std::int64_t published = 0, step = 0;
  long long ended = 0, load = 0, first_step = 0;
  double useful = 0, repeated = 0;  // seconds
};

Progress progress_of(const RunFolder& folder, std::int64_t after) {
  Progress progress;
  progress.published = last_published(read_record(folder), list_steps(folder.checkpoints()));
  std::ifstream file(folder.metrics());
  for (std::string text; std::getline(file, text);) {
    const auto line = nlohmann::json::parse(text, nullptr, false);
    if (line.is_discarded() || !line.contains("loss")) continue;  // torn, or an evaluation
    const auto step = line.value("step", std::int64_t{0});
    // A line stands for the steps since the one before it (train.log_every).
    const auto seconds = [&](std::int64_t from) {
      const std::int64_t steps = step - std::max(progress.step, from);
      return steps > 0 ? static_cast<double>(steps) * line.value("seconds", 0.0) : 0;
    };
    progress.useful += seconds(after);
    progress.repeated += seconds(progress.published);
    progress.step = step;
    progress.ended = milliseconds(line.value("time", ""));
    if (!line.contains("load_began")) continue;
    progress.load = milliseconds(line.value("load_began", ""));
    progress.first_step = milliseconds(line.value("steps_began", ""));
  }
  return progress;
}

}  // namespace

void add_progress_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("progress", "how far a run has come, for scripts");
  auto run = std::make_shared<std::string>();
  auto after = std::make_shared<std::int64_t>(0);
  verb->add_option("RUN", *run, "the run folder")->required();
  verb->add_option("--after", *after, "count the time of the steps after this one");
  verb->callback([&line, run, after] {
    line.run = [run, after] {
      const Progress progress = progress_of({*run}, *after);
      std::printf("published %lld\nstep %lld\nended %lld\nuseful %lld\nrepeated %lld\nload %lld\nfirst_step %lld\n",
                  static_cast<long long>(progress.published), static_cast<long long>(progress.step), progress.ended,
                  std::llround(1000 * progress.useful), std::llround(1000 * progress.repeated), progress.load,
                  progress.first_step);
      return 0;
    };
  });
}

}  // namespace choir
