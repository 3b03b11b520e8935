// Layer norm and RMS norm on the CPU. A row stays in the first-level cache while it is read two or three times, so
// each tensor is read from memory once. The variance is computed in two passes: the mean, then the squares about it.
#include "kernels/norm.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void forward(const NormForward<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  const std::int64_t width = args.width;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = args.x + row * width;
    T* y = args.y + row * width;
    A mean = 0;
    if (args.mean) {
      mean = sum_over(d, width,
                      [&](auto i, auto extent, auto sum) HWY_ATTR { return hn::Add(sum, load(d, x + i, extent)); }) /
             static_cast<A>(width);
      args.mean[row] = mean;
    }
    const auto center = hn::Set(d, mean);
    const A squares = sum_over(d, width, [&](auto i, auto extent, auto sum) HWY_ATTR {
      const auto deviation = hn::Sub(fill_rest(d, load(d, x + i, extent), extent, mean), center);
      return hn::MulAdd(deviation, deviation, sum);
    });
    const A rstd = 1 / std::sqrt(squares / static_cast<A>(width) + static_cast<A>(args.epsilon));
    args.rstd[row] = rstd;
    const auto scale = hn::Set(d, rstd);
    for_each_vector(d, width, [&](auto i, auto extent) HWY_ATTR {
      const auto normalized = hn::Mul(hn::Sub(load(d, x + i, extent), center), scale);
      const auto shift = args.bias ? load(d, args.bias + i, extent) : hn::Zero(d);
      store(d, hn::MulAdd(normalized, load(d, args.weight + i, extent), shift), y + i, extent);
    });
  }
}

// With n = (x - mean) rstd and g = dy weight:
//   dx      = rstd (g - mean_of(g) - n mean_of(g n)) + residual,   mean_of(g) = 0 in RMS norm
//   dweight = sum over rows of dy n,  dbias = sum over rows of dy,  residual_sum = sum over rows of residual: here added
//   to this part's rows of the workspace
template <class T>
void backward(const NormBackward<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  const std::int64_t width = args.width;
  A* dweight = static_cast<A*>(args.workspace) + rows.index * 3 * cpu::padded(width);
  A* dbias = dweight + cpu::padded(width);
  A* of_residual = dbias + cpu::padded(width);
  std::fill(dweight, of_residual + width, A(0));
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = args.x + row * width;
    const T* dy = args.dy + row * width;
    const T* residual = args.residual ? args.residual + row * width : nullptr;
    T* dx = args.dx + row * width;
    const auto mean = hn::Set(d, args.mean ? args.mean[row] : A(0));
    const auto rstd = hn::Set(d, args.rstd[row]);
    auto sum_g = hn::Zero(d), sum_gn = hn::Zero(d);
    for_each_vector(d, width, [&](auto i, auto extent) HWY_ATTR {
      const auto n = hn::Mul(hn::Sub(load(d, x + i, extent), mean), rstd);
      const auto g = hn::Mul(load(d, dy + i, extent), load(d, args.weight + i, extent));
      sum_g = hn::Add(sum_g, g);
      sum_gn = hn::MulAdd(g, n, sum_gn);
    });
    const auto share = hn::Set(d, A(1) / static_cast<A>(width));
    const auto mean_g = args.mean ? hn::Mul(hn::SumOfLanes(d, sum_g), share) : hn::Zero(d);
    const auto mean_gn = hn::Mul(hn::SumOfLanes(d, sum_gn), share);
    for_each_vector(d, width, [&](auto i, auto extent) HWY_ATTR {
      const auto n = hn::Mul(hn::Sub(load(d, x + i, extent), mean), rstd);
      const auto slope = load(d, dy + i, extent);
      const auto g = hn::Mul(slope, load(d, args.weight + i, extent));
      const auto along = residual ? load(d, residual + i, extent) : hn::Zero(d);
      const auto centered = hn::NegMulAdd(n, mean_gn, hn::Sub(g, mean_g));
      store(d, hn::MulAdd(centered, rstd, along), dx + i, extent);
      store(d, hn::MulAdd(slope, n, load(d, dweight + i, extent)), dweight + i, extent);
      store(d, hn::Add(slope, load(d, dbias + i, extent)), dbias + i, extent);
      if (args.residual_sum) store(d, hn::Add(along, load(d, of_residual + i, extent)), of_residual + i, extent);
    });
  }
}

cpu::KernelSet<NormForward<float>, NormForward<bf16>, NormForward<double>,  //
               NormBackward<float>, NormBackward<bf16>, NormBackward<double>>
kernels() {
  return {forward<float>,  forward<bf16>,  forward<double>,  //
          backward<float>, backward<bf16>, backward<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void norm_forward(Cpu cpu, const NormForward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width);
}

template <class T>
void residual_norm_forward(Cpu cpu, const ResidualForward<T>& residual, const NormForward<T>& norm) {
  residual_forward(cpu, residual);
  norm_forward(cpu, norm);
}

template <class T>
std::int64_t norm_backward_workspace_bytes(Cpu cpu, std::int64_t rows, std::int64_t width) {
  return cpu::num_parts(cpu, rows, width) * 3 * cpu::padded(width) * std::int64_t{sizeof(Accumulate<T>)};
}

template <class T>
void norm_backward(Cpu cpu, const NormBackward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width);
  const auto* partial = static_cast<const Accumulate<T>*>(args.workspace);
  const int parts = cpu::num_parts(cpu, args.rows, args.width);
  const std::int64_t width = cpu::padded(args.width);
  cpu::add_partial_sums(cpu, args.dweight, partial, parts, 3 * width, args.width);
  if (args.dbias) cpu::add_partial_sums(cpu, args.dbias, partial + width, parts, 3 * width, args.width);
  if (args.residual_sum)
    cpu::add_partial_sums(cpu, args.residual_sum, partial + 2 * width, parts, 3 * width, args.width);
}

template void norm_forward(Cpu, const NormForward<float>&);
template void norm_forward(Cpu, const NormForward<bf16>&);
template void norm_forward(Cpu, const NormForward<double>&);
template void residual_norm_forward(Cpu, const ResidualForward<float>&, const NormForward<float>&);
template void residual_norm_forward(Cpu, const ResidualForward<bf16>&, const NormForward<bf16>&);
template void residual_norm_forward(Cpu, const ResidualForward<double>&, const NormForward<double>&);
template std::int64_t norm_backward_workspace_bytes<float>(Cpu, std::int64_t, std::int64_t);
template std::int64_t norm_backward_workspace_bytes<bf16>(Cpu, std::int64_t, std::int64_t);
template std::int64_t norm_backward_workspace_bytes<double>(Cpu, std::int64_t, std::int64_t);
template void norm_backward(Cpu, const NormBackward<float>&);
template void norm_backward(Cpu, const NormBackward<bf16>&);
template void norm_backward(Cpu, const NormBackward<double>&);

}  // namespace choir::kernels
#endif
