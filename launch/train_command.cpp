// choir train CONFIG [key=value ...] [--resume[=STEP]] [--dry-run]
#include <charconv>
#include <cstdio>

#include "framework/train/run.h"
#include "framework/train/trainer.h"
#include "launch/command_line.h"
#include "launch/local_ranks.h"
#include "launch/signals.h"
#include "launch/terminal.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  std::string resume;  // "" | "newest" | a step
  bool dry_run = false;
};

Resume parse_resume(const std::string& text) {
  if (text.empty()) return {};
  if (text == "newest") return {.asked = true};
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc{} || end != text.data() + text.size() || step < 1)
    throw ConfigError(
        Problem{.what = "--resume=" + text + " is not a step",
                .why = "--resume takes the step of a checkpoint of the run, or without a step the newest whole one",
                .fix = "--resume, or for example --resume=1000"});
  return {.asked = true, .step = step};
}

/// Before MPI starts, so that its start is watched too. Mistakes in the configuration are reported later, when all
/// ranks can report them once; until then the default limits hold.
std::unique_ptr<Watchdog> start_watchdog(const ConfigArguments& arguments) {
  Config config;
  try {
    config = arguments.read_as_written();
  } catch (const std::exception&) {
    config = {};
  }
  const WatchdogLimits limits{.start = config.train.start_timeout,
                              .progress = config.train.timeout,
                              .storage = config.checkpoint.timeout,
                              .grace = config.train.grace,
                              .silence = config.train.heartbeat};
  return std::make_unique<Watchdog>(
      limits, RunFolder{config.train.folder}.logs(), launcher_rank(), [] { return stop_request().seconds; },
      stopped_local_ranks);
}

int train(CommandLine& line, const Arguments& arguments) {
  if (!arguments.dry_run) {
    catch_stop_signals();
    line.watchdog = start_watchdog(arguments.config);
  }
  MpiProcess& process = line.start_mpi();
  const std::string not_watched = arguments.dry_run ? "" : line.watchdog->join(MPI_COMM_WORLD);
  const Config config = arguments.config.read();
  throw_if_any(check_launcher(process));
  if (arguments.dry_run)
    return process.rank() == 0 ? print_plan(config, process.ranks(), process.processors(), false) : 0;
  throw_if_any(validate(config, process.ranks()));
  line.output_is_the_result = false;  // the run folder is
  if (!not_watched.empty() && process.rank() == 0) std::fprintf(stderr, "choir: %s\n", not_watched.c_str());
  const RunOptions options{.folder = {config.train.folder},
                           .resume = parse_resume(arguments.resume),
                           .columns = watched_columns(),
                           .stop_request = stop_request};
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, line.watchdog->ring());
  return static_cast<int>(run_training(config, options, *device, mesh, *line.watchdog));
}

}  // namespace

void add_train_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("train", "train a model; run it under mpirun for several ranks");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*verb);
  verb->add_flag("--resume{newest}", arguments->resume,
                 "go on from the newest whole checkpoint of the run folder; --resume=STEP: from that of this step, and "
                 "later ones are kept aside")
      ->take_last();
  verb->add_flag("--dry-run", arguments->dry_run, "print the plan for these ranks and end, as choir plan does");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return train(line, *arguments); }; });
}

}  // namespace choir
