#include "launch/bench/train_bench.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "framework/ops/elementwise.h"
#include "framework/train/plan.h"
#include "framework/train/product_rate.h"
#include "framework/train/timed_products.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/philox.h"
#include "kernels/register_rate.h"
#include "launch/bench/data_sheet.h"
#include "launch/process.h"

namespace choir {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// Seconds since this process was launched, from the system's clock ticks since boot (proc(5), field 22 of stat).
double seconds_since_launch() {
  std::ifstream stat("/proc/self/stat"), uptime("/proc/uptime");
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  double up = 0;
  uptime >> up;
  return up - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

std::int64_t peak_resident() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

std::int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

double copy_rate(Runtime& runtime) {
  constexpr std::int64_t bytes = 64 << 20;
  const Tensor from = runtime.empty({bytes / 4}, DType::f32), to = runtime.empty({bytes / 4}, DType::f32);
  Device& device = runtime.device;
  ops::fill(runtime, from, 0.0f);
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    const auto begin = Clock::now();
    device.with_kernels<float>([&](auto kernels_of) {
      kernels::copy_rows(kernels_of, from.raw(), bytes / 64, to.raw(), bytes / 64, 64, bytes / 64);
    });
    device.compute().synchronize();
    times.push_back(seconds_since(begin));
  }
  return 2.0 * static_cast<double>(bytes) / *std::min_element(times.begin(), times.end());
}

double over_ranks(Trainer& trainer, double value, Reduce op) {
  const Tensor all = ops::to_device(trainer.runtime(), std::vector<double>{value}, DType::f64);
  trainer.mesh().world->all_reduce(all, op, trainer.runtime().device.compute(), "bench");
  ops::download(trainer.runtime(), all, &value);
  return value;
}

/// The best of this processor at products of this precision, whatever train.cpu_kernels uses.
kernels::CpuUnit fastest_unit(Precision precision) {
  if (precision == Precision::f32) return kernels::CpuUnit::library;
  if (kernels::cpu::has_tiles()) return kernels::CpuUnit::tiles;
  return kernels::cpu::has_fast_vectors() ? kernels::CpuUnit::vectors : kernels::CpuUnit::library;
}

/// The limit of this rank's processor now, in some milliseconds; of a GPU always its peak.
double limit_rate(const Config& config, Device& device) {
  if (device.kind() == DeviceKind::cuda)
    return config.train.precision == Precision::f32 ? device.gpu_facts().f32_flops_per_second
                                                    : device.gpu_facts().bf16_flops_per_second;
  kernels::Cpu cpu = device.cpu();
  cpu.unit = fastest_unit(config.train.precision);
  const auto begin = Clock::now();
  const double operations = kernels::multiply_in_registers(cpu, 1'000'000);
  return operations / seconds_since(begin);
}

struct Timing {
  double seconds, limit;  // the lower of the limits before and after
};

/// True if the processor was at least 0.9 as fast as it can be.
bool undisturbed(const Timing& timing, double best) { return timing.limit >= 0.9 * best; }

}  // namespace

TrainBench bench_train(const Config& config, Device& device, Mesh& mesh, std::int64_t warm_up, std::int64_t steps,
                       bool profile) {
  TrainBench bench{.steps = steps, .resident_before_bytes = peak_resident(), .unit = describe(device.unit())};
  const ReadSample random = [&](std::int64_t index, const Sample& sample) {
    random_sample(config.model, 1, index, sample);
    return std::int64_t{0};
  };
  Trainer trainer(config, device, mesh);
  bench.first_step_seconds = seconds_since_launch();
  std::int64_t step = 0;
  while (step < warm_up) trainer.step(++step, random, {}, random);
  if constexpr (kernels::built_with_cuda)
    if (config.train.time_products && device.kind() == DeviceKind::cuda) time_products(trainer, bench.products);
  const std::int64_t faults = page_faults();
  std::vector<Timing> timings;
  double best = 0;
  // All ranks repeat the same steps: the slowest one counts.
  const auto limit_now = [&] {
    if (device.kind() == DeviceKind::cuda && best > 0) return best;  // to ask the other ranks waits for the GPU
    const double limit = -over_ranks(trainer, -limit_rate(config, device), Reduce::max);
    best = std::max(best, limit);
    return limit;
  };
  double before = limit_now();
  const std::int64_t most = 3 * steps;
  const auto found = [&] {
    return std::count_if(timings.begin(), timings.end(), [&](const Timing& t) { return undisturbed(t, best); });
  };
  // As in a run: the host starts a step while a GPU computes the one before it.
  const std::size_t most_ahead = device.compute().mode() == StreamMode::immediate ? 0 : 1;
  std::deque<StepInFlight> in_flight;
  auto begin = Clock::now();
  while (std::ssize(timings) < most && found() < steps) {
    in_flight.push_back(trainer.start_step(++step, random, {}, random));
    if (in_flight.size() <= most_ahead) continue;
    bench.loss = trainer.finish_step(in_flight.front()).loss;
    in_flight.pop_front();
    const double seconds = seconds_since(begin), after = limit_now();
    timings.push_back({seconds, std::min(before, after)});
    before = after;
    begin = Clock::now();
  }
  while (!in_flight.empty()) {
    trainer.finish_step(in_flight.front());
    in_flight.pop_front();
  }
  bench.thrown_away = std::ssize(timings) - steps;
  std::sort(timings.begin(), timings.end(), [](const Timing& x, const Timing& y) { return x.limit > y.limit; });
  std::vector<double> times;
  for (std::int64_t i = 0; i < steps; ++i) times.push_back(timings[static_cast<std::size_t>(i)].seconds);
  bench.page_faults_per_step = static_cast<double>(page_faults() - faults) / static_cast<double>(timings.size());
  bench.peak_resident_bytes = peak_resident();
  bench.allocator_peak_bytes = device.allocator().at_peak().total();
  bench.step_seconds = median(times);
  bench.tokens_per_second = static_cast<double>(config.train.batch * config.model.context) / bench.step_seconds;
  bench.model_flops_per_second = model_flops(config.model, config.train.batch) / bench.step_seconds;

  Ledger& ledger = device.ledger();
  ledger.enabled = true;
  const std::int64_t profiled = profile ? std::max<std::int64_t>(1, steps / 2) : 1;
  for (std::int64_t i = 0; i < profiled; ++i) trainer.step(++step, random, {}, random);
  device.synchronize();
  ledger.enabled = false;
  bench.operations = ledger.operations();
  for (Ledger::Operation& o : bench.operations) {
    o.seconds /= static_cast<double>(profiled);
    o.calls /= profiled;
    o.cost.flops /= static_cast<double>(profiled);
    o.cost.bytes /= static_cast<double>(profiled);
  }
  bench.limit_flops_per_second = best * mesh.shape.ranks();
  if (device.kind() == DeviceKind::cuda && config.train.precision != Precision::f32)
    bench.sheet_flops_per_second = bf16_of_data_sheet(device.gpu_facts().name) * mesh.shape.ranks();
  bench.share_of_limit = bench.model_flops_per_second / bench.limit_flops_per_second;
  bench.gemm_flops_per_second =
      over_ranks(trainer, product_rate(trainer.runtime(), ledger.products(), 0.15), Reduce::sum);
  bench.share_of_gemm = bench.model_flops_per_second / bench.gemm_flops_per_second;
  bench.copy_bytes_per_second = copy_rate(trainer.runtime());

  const Plan plan = make_plan(config, mesh.shape.ranks(), count_like(device), device.threads());
  const RankPlan& here = plan.ranks[static_cast<std::size_t>(mesh.here.tensor)];
  bench.planned_bytes = here.peak.total();
  bench.needed_bytes = here.needed_bytes();
  return bench;
}

std::string describe(const TrainBench& b) {
  const auto gb = [](std::int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  std::string text;
  text += fmt::format("step {:.1f} ms (median of {}{}), {:.0f} tokens/s, loss {:.4f}\n", b.step_seconds * 1e3, b.steps,
                      b.thrown_away > 0 ? fmt::format("; {} thrown away: the processor was slow", b.thrown_away) : "",
                      b.tokens_per_second, b.loss);
  text += fmt::format("model {:.2f} GFLOP/s, matrix products alone {:.2f} GFLOP/s at the same shapes: share {:.3f}\n",
                      b.model_flops_per_second / 1e9, b.gemm_flops_per_second / 1e9, b.share_of_gemm);
  text += fmt::format("the limit of the processors, without memory, is {:.2f} GFLOP/s: share {:.3f}\n",
                      b.limit_flops_per_second / 1e9, b.share_of_limit);
  if (b.sheet_flops_per_second > 0)
    text += fmt::format("the data sheet of the GPUs says {:.2f} GFLOP/s: share {:.3f}\n",
                        b.sheet_flops_per_second / 1e9, b.model_flops_per_second / b.sheet_flops_per_second);
  text += fmt::format(
      "memory: resident at most {:.3f} GB ({:.3f} GB before the model); parameters + gradients + optimizer + saved "
      "{:.3f} GB: ratio {:.3f}\n",
      gb(b.peak_resident_bytes), gb(b.resident_before_bytes), gb(b.needed_bytes),
      gb(b.peak_resident_bytes) / gb(b.needed_bytes));
  text +=
      fmt::format("        the allocator's peak {:.4f} GB, planned {:.4f} GB: ratio {:.4f}\n",
                  gb(b.allocator_peak_bytes), gb(b.planned_bytes), gb(b.allocator_peak_bytes) / gb(b.planned_bytes));
  if (!b.products.empty()) text += b.products + "\n";
  text += fmt::format("first step {:.2f} s after the launch; {:.1f} page faults a step\n", b.first_step_seconds,
                      b.page_faults_per_step);
  return text;
}

std::string describe_profile(const TrainBench& b) {
  double total = 0;
  for (const Ledger::Operation& o : b.operations) total += o.seconds;
  std::vector<Ledger::Operation> sorted = b.operations;
  std::sort(sorted.begin(), sorted.end(), [](const auto& x, const auto& y) { return x.seconds > y.seconds; });
  std::string text = fmt::format("{:<22} {:>6} {:>9} {:>7} {:>9} {:>8} {:>14}\n", "operation", "calls", "ms", "share",
                                 "GFLOP/s", "GB/s", "least ms");
  for (const Ledger::Operation& o : sorted) {
    // The larger of the times by the rate of the products and by that of memory. Tensors in a cache can be faster.
    const double least = std::max(o.cost.flops / b.gemm_flops_per_second, o.cost.bytes / b.copy_bytes_per_second);
    text += fmt::format("{:<22} {:>6} {:>9.2f} {:>6.1f}% {:>9.1f} {:>8.2f} {:>14.2f}\n", o.name, o.calls,
                        o.seconds * 1e3, 100 * o.seconds / total, o.cost.flops / o.seconds / 1e9,
                        o.cost.bytes / o.seconds / 1e9, least * 1e3);
  }
  text +=
      fmt::format("{:<22} {:>6} {:>9.2f}; the step without timing {:.2f} ms; copy {:.1f} GB/s{}{}\n", "total", "",
                  total * 1e3, b.step_seconds * 1e3, b.copy_bytes_per_second / 1e9, b.unit.empty() ? "" : "; ", b.unit);
  return text;
}

std::string to_json(const TrainBench& b) {
  nlohmann::ordered_json json = {{"tokens_per_second", b.tokens_per_second},
                                 {"model_flops_per_second", b.model_flops_per_second},
                                 {"gemm_flops_per_second", b.gemm_flops_per_second},
                                 {"share_of_gemm", b.share_of_gemm},
                                 {"limit_flops_per_second", b.limit_flops_per_second},
                                 {"share_of_limit", b.share_of_limit},
                                 {"sheet_flops_per_second", b.sheet_flops_per_second},
                                 {"steps", b.steps},
                                 {"thrown_away", b.thrown_away},
                                 {"peak_resident_bytes", b.peak_resident_bytes},
                                 {"planned_bytes", b.planned_bytes},
                                 {"needed_bytes", b.needed_bytes},
                                 {"allocator_peak_bytes", b.allocator_peak_bytes},
                                 {"page_faults_per_step", b.page_faults_per_step},
                                 {"first_step_seconds", b.first_step_seconds},
                                 {"step_seconds", b.step_seconds},
                                 {"loss", b.loss}};
  return json.dump() + "\n";
}

}  // namespace choir
