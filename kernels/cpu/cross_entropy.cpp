// Softmax cross-entropy on the CPU: the three passes of kernels/cross_entropy.h, a row at a time.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class A>
void max_of_rows(const CrossEntropyMax<A>& args, Part rows) {
  const Tag<A> d;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const A* logits = args.logits + row * args.stride;
    const auto largest = fold(
        d, args.num_tokens, hn::Set(d, lowest),
        [&](auto i, auto extent, auto running)
            HWY_ATTR { return hn::Max(running, fill_rest(d, load(d, logits + i, extent), extent, lowest)); },
        [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
    args.max[row] = hn::GetLane(hn::MaxOfLanes(d, largest));
  }
}

template <class A>
void exp_and_sum(const CrossEntropySum<A>& args, Part rows) {
  const Tag<A> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    A* logits = args.logits + row * args.stride;
    const std::int64_t token = args.targets[row] - args.first_token;
    const bool held = args.targets[row] >= 0 && token >= 0 && token < args.num_tokens;
    args.target[row] = held ? logits[token] : A(0);
    const auto max = hn::Set(d, args.max[row]);
    args.sum[row] = sum_over(d, args.num_tokens, [&](auto i, auto extent, auto sum) HWY_ATTR {
      const auto e = exp(d, hn::Sub(load(d, logits + i, extent), max));
      store(d, e, logits + i, extent);
      return hn::Add(sum, fill_rest(d, e, extent, A(0)));
    });
  }
}

template <class T>
void gradient(const CrossEntropyGradient<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const A* exps = args.exps + row * args.stride;
    T* dlogits = args.dlogits + row * args.stride;
    if (args.targets[row] < 0) {
      std::fill(dlogits, dlogits + args.stride, T(0));
      continue;
    }
    const std::int64_t token = args.targets[row] - args.first_token;
    const bool held = token >= 0 && token < args.num_tokens;
    const A factor = static_cast<A>(args.scale) / args.sum[row];
    const A at_target = held ? exps[token] * factor - static_cast<A>(args.scale) : A(0);
    for_each_vector(d, args.num_tokens, [&](auto i, auto extent) HWY_ATTR {
      store(d, hn::Mul(load(d, exps + i, extent), hn::Set(d, factor)), dlogits + i, extent);
    });
    if (held) dlogits[token] = static_cast<T>(at_target);
    std::fill(dlogits + args.num_tokens, dlogits + args.stride, T(0));
  }
}

cpu::KernelSet<CrossEntropyMax<float>, CrossEntropyMax<double>, CrossEntropySum<float>, CrossEntropySum<double>,
               CrossEntropyGradient<float>, CrossEntropyGradient<bf16>, CrossEntropyGradient<double>>
kernels() {
  return {max_of_rows<float>, max_of_rows<double>, exp_and_sum<float>, exp_and_sum<double>,
          gradient<float>,    gradient<bf16>,      gradient<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class A>
void cross_entropy_max(Cpu cpu, const CrossEntropyMax<A>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.num_tokens);
}

template <class A>
void cross_entropy_sum(Cpu cpu, const CrossEntropySum<A>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.num_tokens);
}

template <class T>
void cross_entropy_gradient(Cpu cpu, const CrossEntropyGradient<T>& args) {
  for (std::int64_t row = 0; row < args.rows; ++row) {
    if (args.targets[row] < 0) continue;
    *args.loss_sum += std::log(static_cast<double>(args.sum[row])) + static_cast<double>(args.max[row]) -
                      static_cast<double>(args.target[row]);
    if (args.right && args.target[row] == args.max[row]) *args.right += 1;
  }
  if (!args.dlogits) return;
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.stride);
}

template void cross_entropy_max(Cpu, const CrossEntropyMax<float>&);
template void cross_entropy_max(Cpu, const CrossEntropyMax<double>&);
template void cross_entropy_sum(Cpu, const CrossEntropySum<float>&);
template void cross_entropy_sum(Cpu, const CrossEntropySum<double>&);
template void cross_entropy_gradient(Cpu, const CrossEntropyGradient<float>&);
template void cross_entropy_gradient(Cpu, const CrossEntropyGradient<bf16>&);
template void cross_entropy_gradient(Cpu, const CrossEntropyGradient<double>&);

}  // namespace choir::kernels
#endif
