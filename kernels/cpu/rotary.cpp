// Rotary position embedding on the CPU: each head is two half vectors, rotated pair by pair.
#include "kernels/rotary.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rotary.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void rotate(const Rotary<T>& args, Part rows) {
  const Tag<T> d;
  const std::int64_t half = args.head_width / 2;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int64_t position = args.positions ? args.positions[row] : args.map.position(row);
    const Accumulate<T>* cosine = args.table + position * args.head_width;
    const Accumulate<T>* sine = cosine + half;
    for (std::int64_t head = 0; head < args.heads; ++head) {
      T* low = args.x + row * args.stride + head * args.head_width;
      T* high = low + half;
      for_each_vector(d, half, [&](auto i, auto extent) HWY_ATTR {
        const auto c = load(d, cosine + i, extent);
        const auto positive = load(d, sine + i, extent);
        const auto s = args.inverse ? hn::Neg(positive) : positive;
        const auto a = load(d, low + i, extent), b = load(d, high + i, extent);
        store(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), low + i, extent);
        store(d, hn::MulAdd(a, s, hn::Mul(b, c)), high + i, extent);
      });
    }
  }
}

cpu::KernelSet<Rotary<float>, Rotary<bf16>, Rotary<double>> kernels() {
  return {rotate<float>, rotate<bf16>, rotate<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void rotary(Cpu cpu, const Rotary<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.heads * args.head_width);
}

template <class A>
void rotary_table(A* table, std::int64_t positions, std::int64_t head_width, double base, const Grid& grid) {
  const std::int64_t half = head_width / 2, frequencies = grid.is_given() ? half / 2 : half;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(base, -static_cast<double>(i % frequencies) / static_cast<double>(frequencies));
    for (std::int64_t position = 0; position < positions; ++position) {
      const Grid::Place at = grid.is_given() ? grid.place(position) : Grid::Place{position, 0};
      const double angle = static_cast<double>(i < frequencies ? at.row : at.column) * frequency;
      table[position * head_width + i] = static_cast<A>(std::cos(angle));
      table[position * head_width + half + i] = static_cast<A>(std::sin(angle));
    }
  }
}

template void rotary(Cpu, const Rotary<float>&);
template void rotary(Cpu, const Rotary<bf16>&);
template void rotary(Cpu, const Rotary<double>&);
template void rotary_table(float*, std::int64_t, std::int64_t, double, const Grid&);
template void rotary_table(double*, std::int64_t, std::int64_t, double, const Grid&);

}  // namespace choir::kernels
#endif
