// choir bench train|kernels CONFIG [key=value ...], choir bench collectives
#include <cstdio>

#include "launch/bench/collective_bench.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/train_bench.h"
#include "launch/command_line.h"

namespace choir {
namespace {

struct TrainArguments {
  ConfigArguments config;
  std::int64_t warm_up = 2, steps = 5;
  bool json = false, profile = false;
};

struct KernelArguments {
  ConfigArguments config;
  std::string device;
};

struct CollectiveArguments {
  std::string device = "auto";
  std::int64_t largest_bytes = 64 << 20;
  bool json = false;
};

int bench_training(CommandLine& line, const TrainArguments& arguments) {
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

/// At the shapes of CONFIG, with one layer, because the others are the same.
int bench_kernels(CommandLine& line, KernelArguments arguments) {
  MpiProcess& process = line.start_mpi();
  if (!arguments.device.empty()) arguments.config.words.push_back("train.device=" + arguments.device);
  Config config = arguments.config.read();
  config.model.layers = 1;
  throw_if_any(validate(config, process.ranks()));
  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  const TrainBench result = bench_train(config, *device, mesh, 2, 6, true);
  if (process.rank() != 0) return 0;
  std::fputs(describe_kernels(result, peak_of(config, *device, result)).c_str(), stdout);
  return 0;
}

int bench_all_collectives(CommandLine& line, const CollectiveArguments& arguments) {
  MpiProcess& process = line.start_mpi();
  if (process.ranks() == 1)
    throw ConfigError(Problem{.what = "choir bench collectives on one rank",
                              .why = "there is no other rank to send to",
                              .fix = "start two ranks or more: mpirun -n 2 choir bench collectives"});
  Config config;
  config.train.device = value_named<TrainDevice>(arguments.device).value();
  config = with_device(config);
  throw_if_any(validate(config, process.ranks()));
  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  const CollectiveBench result = bench_collectives(*device, mesh, arguments.largest_bytes);
  if (process.rank() == 0) std::fputs((arguments.json ? to_json(result) : describe(result)).c_str(), stdout);
  return 0;
}

void add_train_bench(CommandLine& line, CLI::App& bench) {
  CLI::App* verb = bench.add_subcommand("train", "a training step, beside the matrix products alone");
  auto arguments = std::make_shared<TrainArguments>();
  arguments->config.add_to(*verb);
  verb->add_option("--warm-up", arguments->warm_up, "steps before the timed ones")->check(CLI::NonNegativeNumber);
  verb->add_option("--steps", arguments->steps, "timed steps")->check(CLI::PositiveNumber);
  verb->add_flag("--json", arguments->json, "one line of JSON");
  verb->add_flag("--profile", arguments->profile, "a table by operation");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return bench_training(line, *arguments); }; });
}

void add_kernel_bench(CommandLine& line, CLI::App& bench) {
  CLI::App* verb = bench.add_subcommand("kernels", "each operation of a layer of CONFIG, beside the device's peak");
  auto arguments = std::make_shared<KernelArguments>();
  arguments->config.add_to(*verb);
  verb->add_option("--device", arguments->device, "the same as train.device=")->check(CLI::IsMember({"cpu", "cuda"}));
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return bench_kernels(line, *arguments); }; });
}

void add_collective_bench(CommandLine& line, CLI::App& bench) {
  CLI::App* verb = bench.add_subcommand("collectives", "the seven verbs between all ranks, by message size");
  auto arguments = std::make_shared<CollectiveArguments>();
  verb->add_option("--device", arguments->device, "whose memory: MPI on the CPU, NCCL on GPUs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--largest", arguments->largest_bytes, "bytes of the largest tensor")
      ->check(CLI::Range(std::int64_t{4096}, std::int64_t{1} << 36))
      ->capture_default_str();
  verb->add_flag("--json", arguments->json, "one line of JSON");
  verb->callback(
      [&line, arguments] { line.run = [&line, arguments] { return bench_all_collectives(line, *arguments); }; });
}

}  // namespace

void add_bench_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("bench", "measure speed");
  verb->require_subcommand(1);
  add_train_bench(line, *verb);
  add_kernel_bench(line, *verb);
  add_collective_bench(line, *verb);
}

}  // namespace choir
