// choir bench train CONFIG [key=value ...] [--json] [--profile]
#include <cstdio>

#include "launch/bench/train_bench.h"
#include "launch/command_line.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  std::int64_t warm_up = 2, steps = 5;
  bool json = false, profile = false;
};

int bench(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  const Config config = arguments.config.read();
  throw_if_any(validate(config, process.ranks()));
  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  const TrainBench result = bench_train(config, *device, mesh, arguments.warm_up, arguments.steps, arguments.profile);
  if (process.rank() != 0) return 0;
  std::fputs((arguments.json ? to_json(result) : describe(result)).c_str(), stdout);
  if (arguments.profile) std::fputs(describe_profile(result).c_str(), stdout);
  return 0;
}

}  // namespace

void add_bench_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("bench", "measure speed");
  verb->require_subcommand(1);
  CLI::App* train = verb->add_subcommand("train", "a training step, beside the matrix products alone");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*train);
  train->add_option("--warm-up", arguments->warm_up, "steps before the timed ones")->check(CLI::NonNegativeNumber);
  train->add_option("--steps", arguments->steps, "timed steps")->check(CLI::PositiveNumber);
  train->add_flag("--json", arguments->json, "one line of JSON");
  train->add_flag("--profile", arguments->profile, "a table by operation");
  train->callback([&line, arguments] { line.run = [&line, arguments] { return bench(line, *arguments); }; });
}

}  // namespace choir
