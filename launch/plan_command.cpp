// choir plan CONFIG --ranks N [key=value ...]: a dry run of one step on device `count`.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "framework/core/quantity.h"
#include "framework/train/plan.h"
#include "kernels/matmul.h"
#include "launch/command_line.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  std::int64_t ranks = 0;
  std::string device = "cpu";
  bool json = false;
};

}  // namespace

int print_plan(Config config, std::int64_t ranks, int processors, bool json) {
  const DeviceKind kind = config.train.device == TrainDevice::cuda ? DeviceKind::cuda : DeviceKind::cpu;
  const bool bf16_on_cpu = kind == DeviceKind::cpu && config.train.precision != Precision::f32;
  const kernels::CpuUnit unit = cpu_unit(config, kernels::cpu::has_tiles(), kernels::cpu::has_fast_vectors());
  const bool emulated = bf16_on_cpu && unit != kernels::CpuUnit::tiles && !kernels::cpu::has_native_bf16();
  if (bf16_on_cpu) {  // planning needs no bf16 instructions
    config.train.emulate_bf16 = true;
    config.train.cpu_kernels = CpuKernels::automatic;
  }
  throw_if_any(validate(config, ranks));
  const int threads = threads_per_rank(config, processors).threads;
  std::string no_gpu;
  std::unique_ptr<Device> gpu;
  if (kind == DeviceKind::cuda && cuda::visible_gpus(no_gpu) > 0)
    gpu = std::make_unique<Device>(gpu_options(config), threads);
  const Plan plan = make_plan(config, ranks, {.kind = kind, .gpu = gpu.get(), .unit = unit}, threads);
  if (json) {
    std::fputs(to_json(plan).c_str(), stdout);
    return 0;
  }
  std::fputs(describe(plan, config).c_str(), stdout);
  if (gpu)
    std::printf("\nplanned for one GPU a rank, each like the one here: %s\n", gpu->gpu_facts().name.c_str());
  else if (kind == DeviceKind::cuda)
    std::printf(
        "\nplanned for one H100 a rank, with attention on Choir's flash kernels; cuDNN's workspaces are counted if "
        "there is a GPU (%s)\n",
        no_gpu.c_str());
  else
    std::printf("\nplanned for CPU ranks with %s each%s\n", quantity(threads, "thread").c_str(),
                unit != kernels::CpuUnit::library ? ("; " + describe(unit) + " (train.cpu_kernels)").c_str()
                : emulated ? "; workspaces are those of emulated bf16, since this processor has no bf16 instructions"
                           : "");
  return 0;
}

void add_plan_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("plan", "what a run would need and do, without running it");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*verb);
  verb->add_option("--ranks", arguments->ranks, "ranks to plan for")->required()->check(CLI::PositiveNumber);
  verb->add_option("--device", arguments->device, "device to plan for")->check(CLI::IsMember({"cpu", "cuda"}));
  verb->add_flag("--json", arguments->json, "JSON, every tensor rank");
  verb->callback([&line, arguments] {
    line.run = [arguments] {
      Config config = arguments->config.read();
      config.train.device = value_named<TrainDevice>(arguments->device).value();
      const auto processors = static_cast<std::int64_t>(usable_processors().count());  // shared by all ranks
      const int of_rank = static_cast<int>(std::max<std::int64_t>(1, processors / arguments->ranks));
      return print_plan(config, arguments->ranks, of_rank, arguments->json);
    };
  });
}

}  // namespace choir
