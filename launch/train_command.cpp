// choir train CONFIG [key=value ...] [--resume] [--dry-run]
#include "framework/train/run.h"
#include "framework/train/trainer.h"
#include "launch/command_line.h"
#include "launch/signals.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  bool resume = false, dry_run = false;
};

int train(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  const Config config = arguments.config.read();
  if (arguments.dry_run) return process.rank() == 0 ? print_plan(config, process.ranks(), false) : 0;
  throw_if_any(validate(config, process.ranks()));
  install_signal_handlers();
  const RunOptions options{.folder = {config.train.folder},
                           .resume = arguments.resume,
                           .live = output_is_watched(),
                           .stop_requested = requested_end};
  options.folder.create();
  CallRing ring(options.folder.calls(process.rank()));
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  return static_cast<int>(run_training(config, options, *device, mesh, ring));
}

}  // namespace

void add_train_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("train", "train a model; run it under mpirun for several ranks");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*verb);
  verb->add_flag("--resume", arguments->resume, "go on from the newest whole checkpoint of the run folder");
  verb->add_flag("--dry-run", arguments->dry_run, "print the plan for these ranks and end, as choir plan does");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return train(line, *arguments); }; });
}

}  // namespace choir
