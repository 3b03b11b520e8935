// The merge of attention over two sets of keys on the CPU: a head of a query at a time.
#include "kernels/attention_merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_merge.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void merge(const AttentionMerge<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int64_t batch = row / args.queries, query = row - batch * args.queries;
    for (std::int64_t head = 0; head < args.heads; ++head) {
      const std::int64_t at = (batch * args.heads + head) * args.queries + query;
      const A a = args.total_lse[at], b = args.part_lse[at], largest = std::max(a, b);
      if (largest == -std::numeric_limits<A>::infinity()) continue;  // no key so far: total stays 0
      const A sum = largest + std::log(std::exp(a - largest) + std::exp(b - largest));
      const auto of_total = hn::Set(d, std::exp(a - sum)), of_part = hn::Set(d, std::exp(b - sum));
      const std::int64_t first = (row * args.heads + head) * args.head_width;
      const T* part = args.part + first;
      A* total = args.total + first;
      for_each_vector(d, args.head_width, [&](auto i, auto extent) HWY_ATTR {
        const auto scaled = hn::Mul(load(d, part + i, extent), of_part);
        store(d, hn::MulAdd(load(d, total + i, extent), of_total, scaled), total + i, extent);
      });
      args.total_lse[at] = sum;
    }
  }
}

cpu::KernelSet<AttentionMerge<float>, AttentionMerge<bf16>, AttentionMerge<double>> kernels() {
  return {merge<float>, merge<bf16>, merge<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void attention_merge(Cpu cpu, const AttentionMerge<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.batch * args.queries, args.heads * args.head_width);
}

template void attention_merge(Cpu, const AttentionMerge<float>&);
template void attention_merge(Cpu, const AttentionMerge<bf16>&);
template void attention_merge(Cpu, const AttentionMerge<double>&);

}  // namespace choir::kernels
#endif
