#include "launch/burn.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "framework/ops/optimizer.h"
#include "kernels/elementwise.h"

namespace choir {
namespace {

/// [n, n] of standard normals, the same on all hosts.
Tensor random_matrix(Runtime& runtime, std::int64_t n, std::uint64_t key) {
  std::vector<float> values(static_cast<std::size_t>(n * n));
  kernels::random_normal(kernels::Cpu{}, values.data(), 0, n * n, key, 0, 0.0f, 1.0f);
  const Tensor wide = ops::to_device(runtime, values, DType::f32).reshape({n, n});
  if (runtime.compute_type == DType::f32) return wide;
  const Tensor x = runtime.empty({n, n}, runtime.compute_type);
  ops::narrow(runtime, wide, x);
  return x;
}

/// Of n * n numbers: some hundred ranges, since a GPU takes one block for each.
Tensor ranges_of(Runtime& runtime, std::int64_t n) {
  std::vector<kernels::Range> ranges;
  for (std::int64_t row = 0; row < n; row += 8) ranges.push_back({row * n, (row + 8) * n});
  return ops::to_device(runtime, ranges, DType::u8);
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Burn burn(Device& device, double seconds) {
  const bool gpu = device.kind() == DeviceKind::cuda;
  Runtime runtime{.device = device, .compute_type = gpu ? DType::bf16 : DType::f32};
  const std::int64_t n = gpu ? 4096 : 1024;
  const Tensor x = random_matrix(runtime, n, 1), weight = random_matrix(runtime, n, 2), ranges = ranges_of(runtime, n);
  std::vector<std::uint64_t> digests(static_cast<std::size_t>(n / 8));
  const Tensor digests_there = runtime.empty({n}, DType::u8);
  const auto multiply = [&] {
    const Tensor y = ops::linear(runtime, "burn", x, weight, {}, DType::f32);
    ops::digest(runtime, y.reshape({n * n}), ranges, digests_there);
    ops::download(runtime, digests_there, digests.data());
    std::uint64_t sum = 0;
    for (const std::uint64_t digest : digests) sum += digest;
    return sum;
  };
  using Clock = std::chrono::steady_clock;
  Burn result{
      .host = host_name(),
      .processor = gpu ? device.gpu_facts().name : processor_name() + ", " + quantity(device.threads(), "thread"),
      .digest = multiply()};
  const Clock::time_point begin = Clock::now();
  double elapsed = 0;
  while (elapsed < seconds) {
    ++result.products;
    if (multiply() != result.digest) ++result.wrong;
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  result.flops_per_second = 2.0 * static_cast<double>(n * n * n * result.products) / elapsed;
  return result;
}

using State = Check::State;

Check judge_burns(const std::vector<Burn>& burns) {
  std::map<std::string, std::map<std::uint64_t, int>> times;  // of each result, by processor
  std::map<std::string, std::vector<double>> speeds;
  for (const Burn& b : burns) {
    if (!b.problem.empty()) continue;
    ++times[b.processor][b.digest];
    speeds[b.processor].push_back(b.flops_per_second);
  }
  Check check{.name = "burn"};
  for (const auto& [processor, all] : speeds) {
    const auto [slowest, fastest] = std::minmax_element(all.begin(), all.end());
    check.text += fmt::format("{}{} of {}: {:.1f} to {:.1f} GFLOP/s", check.text.empty() ? "" : "; ",
                              quantity(std::ssize(all), "rank"), processor, *slowest / 1e9, *fastest / 1e9);
  }
  for (std::size_t rank = 0; rank < burns.size(); ++rank) {
    const Burn& b = burns[rank];
    const std::map<std::uint64_t, int>& results = times[b.processor];
    const auto most = std::max_element(results.begin(), results.end(),
                                       [](const auto& x, const auto& y) { return x.second < y.second; });
    const double usual = b.problem.empty() ? median(speeds[b.processor]) : 0;
    std::string problem = b.problem;
    if (b.wrong > 0)
      problem = fmt::format("{} of {} had other bits than the first: its hardware is faulty", b.wrong,
                            quantity(b.products, "product"));
    else if (problem.empty() && b.digest != most->first)
      problem = "its product has other bits than that of most ranks with such a processor: one of them is faulty";
    if (!problem.empty())
      check.state = State::broken;
    else if (b.flops_per_second < 0.8 * usual)
      problem = fmt::format("slow, {:.1f} GFLOP/s where {:.1f} are usual", b.flops_per_second / 1e9, usual / 1e9);
    if (problem.empty()) continue;
    check.state = std::max(check.state, State::limited);
    check.fix += fmt::format("{}rank {} ({}): {}", check.fix.empty() ? "" : "; ", rank, b.host, problem);
  }
  return check;
}

}  // namespace choir
