// Rows to the slots of experts and heads, and back, on the CPU: a row or a slot at a time.
#include <algorithm>

#include "kernels/experts.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/expert_slots.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void gather(const GatherSlots<T>& args, Part slots) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t i = slots.begin; i < slots.end; ++i) {
    const std::int64_t from = args.rows_of_slots[i];
    T* y = args.y + i * args.width;
    if (from < 0) {
      std::fill_n(y, args.width, T(A(0)));
      continue;
    }
    const T* x = args.x + from / args.chosen * args.width;
    if (args.weights == nullptr) {
      std::copy_n(x, args.width, y);
      continue;
    }
    const auto weight = hn::Set(d, args.weights[from]);
    for_each_vector(d, args.width, [&](auto e, auto extent) HWY_ATTR {
      store(d, hn::Mul(weight, load(d, x + e, extent)), y + e, extent);
    });
  }
}

template <class T>
void combine(const CombineSlots<T>& args, Part rows) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int32_t* slots = args.slots + row * args.chosen;
    T* y = args.y + row * args.width;
    if (args.chosen == 1 && (slots[0] < 0 || args.weights == nullptr)) {  // nothing to add: a head's row
      if (slots[0] < 0) std::fill_n(y, args.width, T(A(0)));
      if (slots[0] >= 0) std::copy_n(args.x + slots[0] * args.width, args.width, y);
      continue;
    }
    for_each_vector(d, args.width, [&](auto e, auto extent) HWY_ATTR {
      auto sum = hn::Zero(d);
      for (std::int64_t j = 0; j < args.chosen; ++j) {
        if (slots[j] < 0) continue;
        const A weight = args.weights != nullptr ? args.weights[row * args.chosen + j] : A(1);
        sum = hn::Add(sum, hn::Mul(hn::Set(d, weight), load(d, args.x + slots[j] * args.width + e, extent)));
      }
      store(d, sum, y + e, extent);
    });
  }
}

template <class T>
void weight_gradient(const CombineWeightGradient<T>& args, Part rows) {
  const Tag<T> d;
  for (std::int64_t item = rows.begin * args.chosen; item < rows.end * args.chosen; ++item) {
    const std::int64_t slot = args.slots[item];
    args.dweights[item] = 0;
    if (slot < 0) continue;
    const T *dy = args.dy + item / args.chosen * args.width, *x = args.x + slot * args.width;
    args.dweights[item] = sum_over(d, args.width, [&](auto e, auto extent, auto sum) HWY_ATTR {
      return hn::MulAdd(load(d, dy + e, extent), load(d, x + e, extent), sum);
    });
  }
}

cpu::KernelSet<GatherSlots<float>, GatherSlots<bf16>, GatherSlots<double>, CombineSlots<float>, CombineSlots<bf16>,
               CombineSlots<double>, CombineWeightGradient<float>, CombineWeightGradient<bf16>,
               CombineWeightGradient<double>>
kernels() {
  return {gather<float>,   gather<bf16>,           gather<double>,        combine<float>,         combine<bf16>,
          combine<double>, weight_gradient<float>, weight_gradient<bf16>, weight_gradient<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void gather_slots(Cpu cpu, const GatherSlots<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.slots, args.width);
}

template <class T>
void combine_slots(Cpu cpu, const CombineSlots<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width * args.chosen);
}

template <class T>
void combine_weight_gradient(Cpu cpu, const CombineWeightGradient<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width * args.chosen);
}

template void gather_slots(Cpu, const GatherSlots<float>&);
template void gather_slots(Cpu, const GatherSlots<bf16>&);
template void gather_slots(Cpu, const GatherSlots<double>&);
template void combine_slots(Cpu, const CombineSlots<float>&);
template void combine_slots(Cpu, const CombineSlots<bf16>&);
template void combine_slots(Cpu, const CombineSlots<double>&);
template void combine_weight_gradient(Cpu, const CombineWeightGradient<float>&);
template void combine_weight_gradient(Cpu, const CombineWeightGradient<bf16>&);
template void combine_weight_gradient(Cpu, const CombineWeightGradient<double>&);

}  // namespace choir::kernels
#endif
