#include "framework/train/product_rate.h"

#include <algorithm>
#include <chrono>

#include "framework/core/gpu_timer.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/shards.h"
#include "kernels/matmul.h"
#include "kernels/philox.h"

namespace choir {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

void fill_at_random(Runtime& runtime, const Tensor& x) {
  const Tensor flat = x.reshape({x.count()});
  constexpr std::int64_t period = 65521;
  std::int64_t filled = std::min(period, flat.count());
  std::vector<float> values(static_cast<std::size_t>(filled));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = 0x1p-31f * static_cast<float>(kernels::philox_word(1, 0, i)) - 1;
  write(runtime, values.data(), flat.slice_columns(0, filled));
  for (std::int64_t more = 0; filled < flat.count(); filled += more) {
    more = std::min(filled, flat.count() - filled);
    ops::copy(runtime, flat.slice_columns(0, more), flat.slice_columns(filled, filled + more));
  }
}

namespace {

template <class In, class Out>
double time_product(Runtime& runtime, const Ledger::Product& p, double limit) {
  const Tensor a = runtime.empty({p.m, p.k}, dtype_of<In>), b = runtime.empty({p.k, p.n}, dtype_of<In>);
  const Tensor c = runtime.empty({p.m, p.n}, dtype_of<Out>);
  fill_at_random(runtime, a);
  fill_at_random(runtime, b);
  kernels::Matmul<In, Out> args{.a = a.data<In>(),
                                .b = b.data<In>(),
                                .c = c.data<Out>(),
                                .m = p.m,
                                .n = p.n,
                                .k = p.k,
                                .a_stride = p.transpose_a ? p.m : p.k,
                                .b_stride = p.transpose_b ? p.k : p.n,
                                .c_stride = p.n,
                                .transpose_a = p.transpose_a,
                                .transpose_b = p.transpose_b};
  Device& device = runtime.device;
  const std::int64_t workspace_bytes =
      device.with_kernels<In>([&](auto kernels_of) { return kernels::matmul_workspace_bytes(kernels_of, args); });
  const Tensor workspace = runtime.empty({std::max<std::int64_t>(64, workspace_bytes)}, DType::u8);
  args.workspace = workspace.raw();
  Stream& stream = device.compute();
  const auto multiply = [&](int times) {
    for (int i = 0; i < times; ++i)
      device.with_kernels<In>([&](auto kernels_of) { kernels::matmul(kernels_of, args); });
  };
  const auto time = [&] {
    constexpr int at_once = 8;  // the GPU does not wait for the host between them
    if (stream.mode() == StreamMode::cuda) return cuda::seconds_of(stream.cuda(), [&] { multiply(at_once); }) / at_once;
    const auto begin = Clock::now();
    multiply(1);
    return seconds_since(begin);
  };
  multiply(1);
  stream.synchronize();
  std::vector<double> times;
  const auto start = Clock::now();
  while (times.size() < 3 || (seconds_since(start) < limit && times.size() < 30)) times.push_back(time());
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace

double product_rate(Runtime& runtime, const std::vector<Ledger::Product>& products, double seconds_each) {
  double flops = 0, seconds = 0;
  for (const Ledger::Product& p : products) {
    const double time = !p.bf16_in   ? time_product<float, float>(runtime, p, seconds_each)
                        : p.bf16_out ? time_product<bf16, bf16>(runtime, p, seconds_each)
                                     : time_product<bf16, float>(runtime, p, seconds_each);
    flops += 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) *
             static_cast<double>(p.calls);
    seconds += time * static_cast<double>(p.calls);
  }
  return flops / seconds;
}

}  // namespace choir
