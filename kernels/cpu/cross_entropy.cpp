// Softmax cross-entropy on the CPU, a row at a time: a row of logits stays in the second-level cache. Its exponentials
// are kept until their sum is known: in their place if the types are equal, else in a row beside it.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

/// Of a row.
template <class A>
struct Statistics {
  A max, sum, target;
};

/// The column of a row's target in this slice, or -1 if the row is padding or the target is in another slice.
template <class Args>
std::int64_t column_of_target(const Args& args, std::int64_t row) {
  const std::int64_t token = args.targets[row] - args.first_token;
  return args.targets[row] >= 0 && token >= 0 && token < args.num_tokens ? token : -1;
}

/// `exps` [num_tokens] = exp(logits - max), unless it is null; may be the logits.
template <class T>
HWY_INLINE Statistics<Accumulate<T>> statistics_of(const T* logits, std::int64_t num_tokens, std::int64_t column,
                                                   Accumulate<T>* exps) {
  using A = Accumulate<T>;
  const Tag<T> d;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  const auto largest = fold(
      d, num_tokens, hn::Set(d, lowest),
      [&](auto i, auto extent, auto running)
          HWY_ATTR { return hn::Max(running, fill_rest(d, load(d, logits + i, extent), extent, lowest)); },
      [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
  const A max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const A target = column < 0 ? A(0) : static_cast<A>(logits[column]);
  const auto shift = hn::Set(d, max);
  const A sum = sum_over(d, num_tokens, [&](auto i, auto extent, auto running) HWY_ATTR {
    const auto e = exp(d, hn::Sub(load(d, logits + i, extent), shift));
    if (exps) store(d, e, exps + i, extent);
    return hn::Add(running, fill_rest(d, e, extent, A(0)));
  });
  return {max, sum, target};
}

template <class T>
void statistics_part(const CrossEntropyStatistics<T>& args, Part rows) {
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const auto of_row =
        statistics_of<T>(args.logits + row * args.stride, args.num_tokens, column_of_target(args, row), nullptr);
    args.statistics[row] = of_row.max;
    args.statistics[args.rows + row] = of_row.sum;
    args.statistics[2 * args.rows + row] = of_row.target;
  }
}

/// Those of all slices, from those of each.
template <class T>
Statistics<Accumulate<T>> joined(const CrossEntropy<T>& args, std::int64_t row) {
  using A = Accumulate<T>;
  const auto at = [&](std::int64_t slice, int which) { return args.statistics[(3 * slice + which) * args.rows + row]; };
  Statistics<A> all{-std::numeric_limits<A>::infinity(), 0, 0};
  for (std::int64_t slice = 0; slice < args.slices; ++slice) all.max = std::max(all.max, at(slice, 0));
  for (std::int64_t slice = 0; slice < args.slices; ++slice) {
    all.sum += at(slice, 1) * std::exp(at(slice, 0) - all.max);
    all.target += at(slice, 2);
  }
  return all;
}

template <class T>
void cross_entropy_part(const CrossEntropy<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  constexpr bool in_place = std::is_same_v<T, A>;
  const bool keeps = args.gradient && !args.statistics;
  std::vector<A> beside(keeps && !in_place ? static_cast<std::size_t>(args.num_tokens) : 0);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    T* logits = args.logits + row * args.stride;
    if (args.targets[row] < 0) {
      args.losses[row] = 0;
      if (args.right) args.right[row] = 0;
      if (args.gradient) std::fill(logits, logits + args.stride, T(0));
      continue;
    }
    A* exps = nullptr;
    if constexpr (in_place)
      exps = keeps ? logits : nullptr;
    else
      exps = keeps ? beside.data() : nullptr;
    const std::int64_t column = column_of_target(args, row);
    const A held = column < 0 ? A(0) : static_cast<A>(logits[column]);
    const auto [max, sum, target] =
        args.statistics ? joined(args, row) : statistics_of<T>(logits, args.num_tokens, column, exps);
    args.losses[row] = std::log(static_cast<double>(sum)) + static_cast<double>(max) - static_cast<double>(target);
    if (args.right) args.right[row] = target == max ? 1 : 0;
    if (!args.gradient) continue;
    const A scale = static_cast<A>(args.scale), factor = scale / sum;
    const auto shift = hn::Set(d, max), factors = hn::Set(d, factor);
    if (exps) {
      for_each_vector(d, args.num_tokens, [&](auto i, auto extent) HWY_ATTR {
        store(d, hn::Mul(load(d, exps + i, extent), factors), logits + i, extent);
      });
    } else {
      for_each_vector(d, args.num_tokens, [&](auto i, auto extent) HWY_ATTR {
        const auto e = exp(d, hn::Sub(load(d, logits + i, extent), shift));
        store(d, hn::Mul(e, factors), logits + i, extent);
      });
    }
    if (column >= 0) logits[column] = static_cast<T>(std::exp(held - max) * factor - scale);
    std::fill(logits + args.num_tokens, logits + args.stride, T(0));
  }
}

cpu::KernelSet<CrossEntropyStatistics<float>, CrossEntropyStatistics<bf16>, CrossEntropyStatistics<double>,
               CrossEntropy<float>, CrossEntropy<bf16>, CrossEntropy<double>>
kernels() {
  return {statistics_part<float>,    statistics_part<bf16>,    statistics_part<double>,
          cross_entropy_part<float>, cross_entropy_part<bf16>, cross_entropy_part<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void cross_entropy_statistics(Cpu cpu, const CrossEntropyStatistics<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.num_tokens);
}

template <class T>
void cross_entropy(Cpu cpu, const CrossEntropy<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.stride);
}

void sum_of_losses(Cpu, const SumOfLosses& args) {
  for (std::int64_t row = 0; row < args.rows; ++row) *args.sum += args.losses[row];
}

template void cross_entropy_statistics(Cpu, const CrossEntropyStatistics<float>&);
template void cross_entropy_statistics(Cpu, const CrossEntropyStatistics<bf16>&);
template void cross_entropy_statistics(Cpu, const CrossEntropyStatistics<double>&);
template void cross_entropy(Cpu, const CrossEntropy<float>&);
template void cross_entropy(Cpu, const CrossEntropy<bf16>&);
template void cross_entropy(Cpu, const CrossEntropy<double>&);

}  // namespace choir::kernels
#endif
