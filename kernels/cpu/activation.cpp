// The nonlinearities on the CPU. Each is x times a cumulative distribution c(x), with one exp per element, and has the
// derivative c + x c':
//
//   gelu      gelu.h
//   gelu_erf  c = Phi, the standard normal distribution
//   silu      c = sigmoid(x)
#include "kernels/activation.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/gelu.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

struct Silu {
  template <class D>
  static HWY_INLINE Gate<hn::Vec<D>> gate(D d, hn::Vec<D> x) {
    const auto value = sigmoid(d, x);
    return {value, hn::Mul(limit(d, x, 90), hn::NegMulAdd(value, value, value))};
  }
};

/// Phi(-a), a >= 0, given e = exp(-a^2 / 2). In f32: Phi(-a) = e t p(t), t = 1 / (1 + 0.27 a), p the polynomial
/// through erfcx at Chebyshev nodes of a in [0, 13.5]: relative error 3e-8 before rounding.
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 4>* = nullptr>
HWY_INLINE hn::Vec<D> normal_tail(D d, hn::Vec<D> a, hn::Vec<D> e) {
  const auto t = hn::Div(hn::Set(d, 1.0f), hn::MulAdd(a, hn::Set(d, 0.27f), hn::Set(d, 1.0f)));
  auto p = hn::Set(d, 0.028988641399074037f);
  p = hn::MulAdd(p, t, hn::Set(d, -0.12666124548562419f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.1702335345079443f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.06981608446125254f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.1083032538437199f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.071824396449443f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.10187247660469138f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.10753384691535002f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.10772119085660924f));
  return hn::Mul(hn::Mul(e, t), p);
}

/// In f64 (tests): the function of the standard library.
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hn::Vec<D> normal_tail(D d, hn::Vec<D> a, hn::Vec<D>) {
  double lane[hn::MaxLanes(d)];
  store(d, a, lane);
  for (double& value : lane) value = 0.5 * std::erfc(value * 0.7071067811865476);
  return load(d, lane);
}

struct GeluErf {
  template <class D>
  static HWY_INLINE Gate<hn::Vec<D>> gate(D d, hn::Vec<D> x) {
    using A = hn::TFromD<D>;
    x = limit(d, x, 30);
    const auto e = exp(d, hn::Mul(hn::Mul(x, x), hn::Set(d, A(-0.5))));
    const auto tail = normal_tail(d, hn::Abs(x), e);
    const auto value = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, A(1)), tail));
    return {value, hn::Mul(hn::Mul(x, e), hn::Set(d, A(0.3989422804014327)))};
  }
};

/// y = x c(x)
template <class Kind, class T>
void forward_as(const ActivationForward<T>& args, Part elements) {
  const Tag<T> d;
  const T* x = args.x + elements.begin;
  T* y = args.y + elements.begin;
  for_each_vector(d, elements.end - elements.begin, [&](auto i, auto extent) HWY_ATTR {
    const auto input = load(d, x + i, extent);
    store(d, hn::Mul(input, Kind::gate(d, input).value), y + i, extent);
  });
}

/// dx = dy (c + x c')
template <class Kind, class T>
void backward_as(const ActivationBackward<T>& args, Part elements) {
  const Tag<T> d;
  const T* x = args.x + elements.begin;
  const T* dy = args.dy + elements.begin;
  T* dx = args.dx + elements.begin;
  for_each_vector(d, elements.end - elements.begin, [&](auto i, auto extent) HWY_ATTR {
    const auto gate = Kind::gate(d, load(d, x + i, extent));
    store(d, hn::Mul(load(d, dy + i, extent), hn::Add(gate.value, gate.slope)), dx + i, extent);
  });
}

/// y = silu(gate) up
template <class T>
void forward_gated(const ActivationForward<T>& args, Part elements) {
  const Tag<T> d;
  for_each_row(elements, args.width, [&](std::int64_t row, std::int64_t begin, std::int64_t count) {
    const T* gate = args.x + row * 2 * args.width + begin;
    const T* up = gate + args.width;
    T* y = args.y + row * args.width + begin;
    for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
      const auto input = load(d, gate + i, extent);
      const auto silu = hn::Mul(input, Silu::gate(d, input).value);
      store(d, hn::Mul(silu, load(d, up + i, extent)), y + i, extent);
    });
  });
}

/// dup = dy silu(gate), dgate = dy up silu'(gate)
template <class T>
void backward_gated(const ActivationBackward<T>& args, Part elements) {
  const Tag<T> d;
  for_each_row(elements, args.width, [&](std::int64_t row, std::int64_t begin, std::int64_t count) {
    const T* gate = args.x + row * 2 * args.width + begin;
    const T* up = gate + args.width;
    const T* dy = args.dy + row * args.width + begin;
    T* dgate = args.dx + row * 2 * args.width + begin;
    T* dup = dgate + args.width;
    for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
      const auto input = load(d, gate + i, extent);
      const auto slope = load(d, dy + i, extent);
      const auto silu = Silu::gate(d, input);
      const auto through_up = hn::Mul(slope, load(d, up + i, extent));
      store(d, hn::Mul(through_up, hn::Add(silu.value, silu.slope)), dgate + i, extent);
      store(d, hn::Mul(slope, hn::Mul(input, silu.value)), dup + i, extent);
    });
  });
}

template <class T>
void forward(const ActivationForward<T>& args, Part elements) {
  switch (args.kind) {
    case Activation::gelu:
      return forward_as<Gelu>(args, elements);
    case Activation::gelu_erf:
      return forward_as<GeluErf>(args, elements);
    case Activation::silu_gated:
      return forward_gated(args, elements);
  }
}

template <class T>
void backward(const ActivationBackward<T>& args, Part elements) {
  switch (args.kind) {
    case Activation::gelu:
      return backward_as<Gelu>(args, elements);
    case Activation::gelu_erf:
      return backward_as<GeluErf>(args, elements);
    case Activation::silu_gated:
      return backward_gated(args, elements);
  }
}

cpu::KernelSet<ActivationForward<float>, ActivationForward<bf16>, ActivationForward<double>, ActivationBackward<float>,
               ActivationBackward<bf16>, ActivationBackward<double>>
kernels() {
  return {forward<float>, forward<bf16>, forward<double>, backward<float>, backward<bf16>, backward<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void activation_forward(Cpu cpu, const ActivationForward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows * args.width, 1, 64);
}

template <class T>
void activation_backward(Cpu cpu, const ActivationBackward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows * args.width, 1, 64);
}

template void activation_forward(Cpu, const ActivationForward<float>&);
template void activation_forward(Cpu, const ActivationForward<bf16>&);
template void activation_forward(Cpu, const ActivationForward<double>&);
template void activation_backward(Cpu, const ActivationBackward<float>&);
template void activation_backward(Cpu, const ActivationBackward<bf16>&);
template void activation_backward(Cpu, const ActivationBackward<double>&);

}  // namespace choir::kernels
#endif
