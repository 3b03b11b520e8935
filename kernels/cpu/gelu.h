// The nonlinearity gelu in vectors, for its kernel and for products that end with it. It is x times a cumulative
// distribution c(x), and has the derivative c + x c':
//
//   c = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2 u)
//
// This header is included after "hwy/foreach_target.h", once per instruction set, as simd.h is.
#if defined(CHOIR_KERNELS_CPU_GELU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_GELU_H
#undef CHOIR_KERNELS_CPU_GELU_H
#else
#define CHOIR_KERNELS_CPU_GELU_H
#endif

#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

/// c(x) and x c'(x). They may be numbers if x is NaN: forward multiplies by x, which keeps the NaN.
template <class V>
struct Gate {
  V value, slope;
};

/// `x` clamped to [-bound, bound]; outside, a gate is 0 or 1 and its slope 0 in every type.
template <class D>
HWY_INLINE hn::Vec<D> limit(D d, hn::Vec<D> x, double bound) {
  const auto high = hn::Set(d, static_cast<hn::TFromD<D>>(bound));
  return hn::Min(hn::Max(x, hn::Neg(high)), high);
}

struct Gelu {
  template <class D>
  static HWY_INLINE Gate<hn::Vec<D>> gate(D d, hn::Vec<D> x) {
    using A = hn::TFromD<D>;
    constexpr double linear = 1.5957691216057308, cubic = linear * 0.044715;  // 2 u = linear x + cubic x^3
    x = limit(d, x, 10);  // |2 u| < 87.32, where exp_in_range() still holds
    const auto one = hn::Set(d, A(1)), c1 = hn::Set(d, static_cast<A>(-linear));
    const auto x2 = hn::Mul(x, x);
    const auto minus_2u = hn::Mul(x, hn::MulAdd(hn::Set(d, static_cast<A>(-cubic)), x2, c1));
    const auto value = hn::Div(one, hn::Add(one, exp_in_range(d, minus_2u)));
    const auto minus_slope = hn::Mul(x, hn::MulAdd(hn::Set(d, static_cast<A>(-3 * cubic)), x2, c1));
    return {value, hn::Mul(hn::MulSub(value, value, value), minus_slope)};
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
