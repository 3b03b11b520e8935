// Means over positions on the CPU, divided by sequences: no two threads write to one element.
#include "kernels/pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pool.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void pool(const PoolForward<T>& args, Part sequences) {
  using A = Accumulate<T>;
  const Tag<T> d;
  const PoolShape& s = args.shape;
  for (std::int64_t sequence = sequences.begin; sequence < sequences.end; ++sequence) {
    A* means = args.means + sequence * s.width;
    std::fill(means, means + s.width, A(0));
    for (int run = 0; run < 2; ++run) {
      const Run rows = s.rows_of(sequence, run);
      for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const T* x = args.x + row * s.width;
        for_each_vector(d, s.width, [&](auto i, auto extent) HWY_ATTR {
          store(d, hn::Add(load(d, means + i, extent), load(d, x + i, extent)), means + i, extent);
        });
      }
    }
    for_each_vector(d, s.width, [&](auto i, auto extent) HWY_ATTR {
      const auto factor = hn::Set(d, s.factor<A>(sequence));
      store(d, hn::Mul(load(d, means + i, extent), factor), means + i, extent);
    });
  }
}

template <class T>
void pool_backward(const PoolBackward<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  const PoolShape& s = args.shape;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    T* dx = args.dx + row * s.width;
    const RowMap::Place at = s.map.place(row);
    if (!s.is_read(row, at)) {
      std::fill(dx, dx + s.width, T(0));
      continue;
    }
    const T* dmeans = args.dmeans + at.sequence * s.width;
    for_each_vector(d, s.width, [&](auto i, auto extent) HWY_ATTR {
      const auto factor = hn::Set(d, s.factor<A>(at.sequence));
      store(d, hn::Mul(load(d, dmeans + i, extent), factor), dx + i, extent);
    });
  }
}

cpu::KernelSet<PoolForward<float>, PoolForward<bf16>, PoolForward<double>, PoolBackward<float>, PoolBackward<bf16>,
               PoolBackward<double>>
kernels() {
  return {pool<float>, pool<bf16>, pool<double>, pool_backward<float>, pool_backward<bf16>, pool_backward<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void pool_forward(Cpu cpu, const PoolForward<T>& args) {
  const PoolShape& s = args.shape;
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, s.map.sequences, s.rows * s.width / s.map.sequences);
}

template <class T>
void pool_backward(Cpu cpu, const PoolBackward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.shape.rows, args.shape.width);
}

template void pool_forward(Cpu, const PoolForward<float>&);
template void pool_forward(Cpu, const PoolForward<bf16>&);
template void pool_forward(Cpu, const PoolForward<double>&);
template void pool_backward(Cpu, const PoolBackward<float>&);
template void pool_backward(Cpu, const PoolBackward<bf16>&);
template void pool_backward(Cpu, const PoolBackward<double>&);

}  // namespace choir::kernels
#endif
