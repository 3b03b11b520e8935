// Attention sinks on the CPU: a head of a query at a time.
#include "kernels/attention_sink.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_sink.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void sink(const AttentionSink<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    for (std::int64_t head = 0; head < args.heads; ++head) {
      A& lse = args.lse[(batch * args.heads + head) * args.queries + query];
      const A largest = std::max(lse, args.sinks[head]);
      const A sum = largest + std::log(std::exp(lse - largest) + std::exp(args.sinks[head] - largest));
      const auto share = hn::Set(d, std::exp(lse - sum));
      T* out = args.out + (row * args.heads + head) * args.head_width;
      for_each_vector(d, args.head_width, [&](auto i, auto extent) HWY_ATTR {
        store(d, hn::Mul(load(d, out + i, extent), share), out + i, extent);
      });
      lse = sum;
    }
  }
}

template <class T>
void sink_gradient(const AttentionSinkGradient<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    for (std::int64_t head = 0; head < args.heads; ++head) {
      const std::int64_t item = row * args.heads + head;
      const T *out = args.out + item * args.head_width, *dout = args.dout + item * args.head_width;
      const A delta = sum_over(d, args.head_width, [&](auto i, auto extent, auto sum) HWY_ATTR {
        return hn::MulAdd(load(d, out + i, extent), load(d, dout + i, extent), sum);
      });
      const A lse = args.lse[(batch * args.heads + head) * args.queries + query];
      args.terms[item] = -std::exp(args.sinks[head] - lse) * delta;
    }
  }
}

cpu::KernelSet<AttentionSink<float>, AttentionSink<bf16>, AttentionSink<double>, AttentionSinkGradient<float>,
               AttentionSinkGradient<bf16>, AttentionSinkGradient<double>>
kernels() {
  return {sink<float>, sink<bf16>, sink<double>, sink_gradient<float>, sink_gradient<bf16>, sink_gradient<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void attention_sink(Cpu cpu, const AttentionSink<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.batch * args.queries, args.heads * args.head_width);
}

template <class T>
void attention_sink_gradient(Cpu cpu, const AttentionSinkGradient<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.batch * args.queries, args.heads * args.head_width);
}

template void attention_sink(Cpu, const AttentionSink<float>&);
template void attention_sink(Cpu, const AttentionSink<bf16>&);
template void attention_sink(Cpu, const AttentionSink<double>&);
template void attention_sink_gradient(Cpu, const AttentionSinkGradient<float>&);
template void attention_sink_gradient(Cpu, const AttentionSinkGradient<bf16>&);
template void attention_sink_gradient(Cpu, const AttentionSinkGradient<double>&);

}  // namespace choir::kernels
#endif
