#include "launch/bench/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/bench/data_sheet.h"

namespace choir {

Peak peak_of(const Config& config, const Device& device, const TrainBench& bench) {
  if (device.kind() == DeviceKind::cpu)
    return {.flops_per_second = bench.gemm_flops_per_second,
            .bytes_per_second = bench.copy_bytes_per_second,
            .source = "measured: matrix products of these shapes, and a large copy"};
  const GpuFacts& facts = device.gpu_facts();
  const double of_sheet = config.train.precision == Precision::f32 ? 0 : bf16_of_data_sheet(facts.name);
  return {
      .flops_per_second =
          config.train.precision == Precision::f32 ? facts.f32_flops_per_second : facts.bf16_flops_per_second,
      .bytes_per_second = facts.bytes_per_second,
      .source = fmt::format("{}: from its clocks, multiprocessors and memory bus{}", facts.name,
                            of_sheet > 0 ? fmt::format("; its data sheet says {:.1f} GFLOP/s", of_sheet / 1e9) : "")};
}

std::string describe_kernels(const TrainBench& bench, const Peak& peak) {
  std::string text = fmt::format("peak {:.1f} GFLOP/s, {:.1f} GB/s ({})\n", peak.flops_per_second / 1e9,
                                 peak.bytes_per_second / 1e9, peak.source);
  text += fmt::format("{:<22} {:>6} {:>12} {:>10} {:>9} {:>9}\n", "operation", "calls", "us a call", "GFLOP/s", "GB/s",
                      "of peak");
  std::vector<Ledger::Operation> sorted = bench.operations;
  std::sort(sorted.begin(), sorted.end(), [](const auto& x, const auto& y) { return x.seconds > y.seconds; });
  for (const Ledger::Operation& o : sorted) {
    const double flops = o.cost.flops / o.seconds, bytes = o.cost.bytes / o.seconds;
    const bool known = peak.flops_per_second > 0 && peak.bytes_per_second > 0;  // a driver may not report its clocks
    const double share = std::max(flops / peak.flops_per_second, bytes / peak.bytes_per_second);
    text += fmt::format("{:<22} {:>6} {:>12.1f} {:>10.1f} {:>9.2f} {:>9}\n", o.name, o.calls,
                        o.seconds * 1e6 / static_cast<double>(o.calls), flops / 1e9, bytes / 1e9,
                        known ? fmt::format("{:.1f}%", 100 * share) : "unknown");
  }
  return text;
}

}  // namespace choir
