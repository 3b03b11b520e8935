// Sums on the CPU: of columns, for which each thread adds its rows to its own row of the workspace, and of squares.
#include "kernels/reduce.h"

#include <algorithm>
#include <array>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void sum_columns(const ColumnSum<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  A* sum = static_cast<A*>(args.workspace) + rows.index * cpu::padded(args.width);
  std::fill(sum, sum + args.width, A(0));
  std::int64_t row = rows.begin;
  for (; row + 4 <= rows.end; row += 4) {
    const T* x = args.x + row * args.stride;
    for_each_vector(d, args.width, [&](auto i, auto extent) HWY_ATTR {
      const auto first = hn::Add(load(d, x + i, extent), load(d, x + args.stride + i, extent));
      const auto second = hn::Add(load(d, x + 2 * args.stride + i, extent), load(d, x + 3 * args.stride + i, extent));
      store(d, hn::Add(load(d, sum + i, extent), hn::Add(first, second)), sum + i, extent);
    });
  }
  for (; row < rows.end; ++row) {
    const T* x = args.x + row * args.stride;
    for_each_vector(d, args.width, [&](auto i, auto extent) HWY_ATTR {
      store(d, hn::Add(load(d, sum + i, extent), load(d, x + i, extent)), sum + i, extent);
    });
  }
}

cpu::KernelSet<ColumnSum<float>, ColumnSum<bf16>, ColumnSum<double>> kernels() {
  return {sum_columns<float>, sum_columns<bf16>, sum_columns<double>};
}

double sum_of_squares(const float* x, std::int64_t count) {
  const hn::ScalableTag<double> d;
  return sum_over(d, count, [&](auto i, auto extent, auto sum) HWY_ATTR {
    const auto value = load(d, x + i, extent);
    return hn::MulAdd(value, value, sum);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);
HWY_EXPORT(sum_of_squares);

template <class T>
std::int64_t column_sum_workspace_bytes(Cpu cpu, std::int64_t rows, std::int64_t width) {
  return cpu::num_parts(cpu, rows, width) * cpu::padded(width) * std::int64_t{sizeof(Accumulate<T>)};
}

template <class T>
void column_sum(Cpu cpu, const ColumnSum<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width);
  cpu::add_partial_sums(cpu, args.sum, static_cast<const Accumulate<T>*>(args.workspace),
                        cpu::num_parts(cpu, args.rows, args.width), cpu::padded(args.width), args.width);
}

// The ranges are cut into chunks of fixed length, assigned in turn to a fixed number of partial sums. A thread computes
// some of the partial sums; what is added to which sum, and in which order, does not depend on the threads.
std::int64_t squared_norm_workspace_bytes(Cpu, std::int64_t) { return 0; }

void squared_norm(Cpu cpu, const SquaredNorm& args) {
  constexpr std::int64_t chunk = 1024, num_partials = 256;
  std::array<double, num_partials> partials{};
  std::int64_t elements = 0;
  for (std::int64_t i = 0; i < args.num_ranges; ++i) elements += args.ranges[i].end - args.ranges[i].begin;
  const auto squares = HWY_DYNAMIC_DISPATCH(sum_of_squares);
  cpu::for_each_part(cpu::num_parts(cpu, num_partials, elements / num_partials), num_partials, 8, [&](cpu::Part owned) {
    std::int64_t turn = 0;
    for (std::int64_t i = 0; i < args.num_ranges; ++i) {
      for (std::int64_t begin = args.ranges[i].begin; begin < args.ranges[i].end; begin += chunk, ++turn) {
        const std::int64_t partial = turn % num_partials;
        if (partial < owned.begin || partial >= owned.end) continue;
        partials[partial] += squares(args.x + begin, std::min(chunk, args.ranges[i].end - begin));
      }
    }
  });
  *args.sum = 0;
  for (const double partial : partials) *args.sum += partial;
}

template std::int64_t column_sum_workspace_bytes<float>(Cpu, std::int64_t, std::int64_t);
template std::int64_t column_sum_workspace_bytes<bf16>(Cpu, std::int64_t, std::int64_t);
template std::int64_t column_sum_workspace_bytes<double>(Cpu, std::int64_t, std::int64_t);
template void column_sum(Cpu, const ColumnSum<float>&);
template void column_sum(Cpu, const ColumnSum<bf16>&);
template void column_sum(Cpu, const ColumnSum<double>&);

}  // namespace choir::kernels
#endif
