// What the CPU kernels share on top of Highway: reading and writing any element type as vectors of the type of the
// sums, ragged ends, sums over a row, exp.
//
// Highway compiles a kernel once per instruction set and chooses at run time. This header is included by each .cpp
// after "hwy/foreach_target.h", so it is included once per instruction set too (hence the unusual guard).

#if defined(CHOIR_KERNELS_CPU_SIMD_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_SIMD_H
#undef CHOIR_KERNELS_CPU_SIMD_H
#else
#define CHOIR_KERNELS_CPU_SIMD_H
#endif

#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/cpu/parallel.h"
#include "kernels/types.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using cpu::Part;

/// Vectors in which a kernel on T computes: f32, or f64 if T is f64.
template <class T>
using Tag = hn::ScalableTag<Accumulate<T>>;

template <class D>
HWY_INLINE std::int64_t lanes(D d) {
  return static_cast<std::int64_t>(hn::Lanes(d));
}

// ---- Reading and writing. A vector of D from Lanes(d) elements of T, converted; Whole, or the Rest of a ragged end.

struct Whole {};
struct Rest {
  std::int64_t count;  ///< 1 ... Lanes(d) - 1
};

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* from, Whole = {}) {
  return hn::LoadU(d, from);
}

template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hn::Vec<D> load(D d, const float* from, Whole = {}) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), from));
}

template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 4>* = nullptr>
HWY_INLINE hn::Vec<D> load(D d, const bf16* from, Whole = {}) {
  const hn::Rebind<std::uint32_t, D> du32;
  const hn::Rebind<std::uint16_t, D> du16;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, hn::TFromD<D>* to, Whole = {}) {
  hn::StoreU(value, d, to);
}

/// Rounds to nearest, ties to even, and keeps NaN, as bf16(float) does; Highway 1.0's own DemoteTo truncates.
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 4>* = nullptr>
HWY_INLINE void store(D, hn::Vec<D> value, bf16* to, Whole = {}) {
  const hn::Rebind<std::uint32_t, D> du32;
  const hn::Rebind<std::int32_t, D> di32;
  const hn::Rebind<std::uint16_t, D> du16;
  const auto word = hn::BitCast(du32, value);
  const auto upper = hn::ShiftRight<16>(word);
  const auto even = hn::Add(hn::Set(du32, 0x7fffu), hn::And(upper, hn::Set(du32, 1u)));
  const auto rounded = hn::ShiftRight<16>(hn::Add(word, even));
  const auto is_nan = hn::RebindMask(du32, hn::IsNaN(value));
  const auto bits = hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(du32, 0x40u)), rounded);
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, bits)), du16, reinterpret_cast<std::uint16_t*>(to));
}

/// Lanes from rest.count on are zero; nothing is read there.
template <class D, class T>
HWY_INLINE hn::Vec<D> load(D d, const T* from, Rest rest) {
  T whole[hn::MaxLanes(d)] = {};
  std::memcpy(whole, from, static_cast<std::size_t>(rest.count) * sizeof(T));
  return load(d, whole);
}

template <class D, class T>
HWY_INLINE void store(D d, hn::Vec<D> value, T* to, Rest rest) {
  T whole[hn::MaxLanes(d)];
  store(d, value, whole);
  std::memcpy(to, whole, static_cast<std::size_t>(rest.count) * sizeof(T));
}

/// `value` in the lanes in use, `fill` in those beyond a ragged end.
template <class D>
HWY_INLINE hn::Vec<D> fill_rest(D, hn::Vec<D> value, Whole, hn::TFromD<D>) {
  return value;
}
template <class D>
HWY_INLINE hn::Vec<D> fill_rest(D d, hn::Vec<D> value, Rest rest, hn::TFromD<D> fill) {
  return hn::IfThenElse(hn::FirstN(d, static_cast<std::size_t>(rest.count)), value, hn::Set(d, fill));
}

// ---- Loops

/// body(i, Whole{}) for every whole vector of [0, count), then body(i, Rest) for what is left.
template <class D, class Body>
HWY_INLINE void for_each_vector(D d, std::int64_t count, const Body& body) {
  const std::int64_t step = lanes(d);
  std::int64_t i = 0;
  for (; i + step <= count; i += step) body(i, Whole{});
  if (i < count) body(i, Rest{count - i});
}

/// Calls body(row, first column, count) for the pieces of rows that are elements [begin, end) of a matrix.
template <class Body>
HWY_INLINE void for_each_row(Part elements, std::int64_t width, const Body& body) {
  for (std::int64_t i = elements.begin; i < elements.end;) {
    const std::int64_t row = i / width, column = i % width;
    const std::int64_t count = HWY_MIN(width - column, elements.end - i);
    body(row, column, count);
    i += count;
  }
}

/// Folds body(i, whole or rest, running value) over [0, count) with four running values, which hides the latency of an
/// addition, and combines them in pairs with `join`. All four begin with `start`, so join(start, start) must be start.
template <class D, class Body, class Join>
HWY_INLINE hn::Vec<D> fold(D d, std::int64_t count, hn::Vec<D> start, const Body& body, const Join& join) {
  const std::int64_t step = lanes(d);
  auto a = start, b = start, c = start, e = start;
  std::int64_t i = 0;
  for (; i + 4 * step <= count; i += 4 * step) {
    a = body(i, Whole{}, a);
    b = body(i + step, Whole{}, b);
    c = body(i + 2 * step, Whole{}, c);
    e = body(i + 3 * step, Whole{}, e);
  }
  for (; i + step <= count; i += step) a = body(i, Whole{}, a);
  if (i < count) b = body(i, Rest{count - i}, b);
  return join(join(a, b), join(c, e));
}

/// The sum over all lanes of fold() with addition: body returns running + its term.
template <class D, class Body>
HWY_INLINE hn::TFromD<D> sum_over(D d, std::int64_t count, const Body& body) {
  const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
  return hn::GetLane(hn::SumOfLanes(d, fold(d, count, hn::Zero(d), body, add)));
}

// ---- Functions

/// exp(x) for x in [-87.33, 88.37], to 2 ulp.
/// exp(x) = 2^n exp(r), n = round(x / log 2), |r| <= log(2) / 2, with the polynomial of Moshier's Cephes for exp(r).
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 4>* = nullptr>
HWY_INLINE hn::Vec<D> exp_in_range(D d, hn::Vec<D> x) {
  const hn::Rebind<std::int32_t, D> di32;
  // Adding 1.5 * 2^23 + 127 rounds to an integer and leaves n + 127, the exponent field of 2^n, in the lowest bits.
  const auto shifter = hn::Set(d, 12583039.0f);
  const auto shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), shifter);
  const auto n = hn::Sub(shifted, shifter);
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di32, shifted)));
  // log 2 in two parts, the first short enough that its product with n is exact.
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  const auto r2 = hn::Mul(r, r);
  const auto p45 = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
  const auto p23 = hn::MulAdd(hn::Set(d, 8.3334519073e-3f), r, hn::Set(d, 4.1665795894e-2f));
  const auto p01 = hn::MulAdd(hn::Set(d, 1.6666665459e-1f), r, hn::Set(d, 5.0000001201e-1f));
  const auto p = hn::MulAdd(hn::MulAdd(p45, r2, p23), r2, p01);
  return hn::Mul(hn::Add(hn::MulAdd(p, r2, r), hn::Set(d, 1.0f)), power);
}

/// The same in f64 (tests).
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hn::Vec<D> exp_in_range(D d, hn::Vec<D> x) {
  return hn::Exp(d, x);
}

/// exp(x); below -87.33 it is 0, above 88.37 it stays at 2.4e38; NaN stays NaN. Limits in f64: -700 and 700.
template <class D>
HWY_INLINE hn::Vec<D> exp(D d, hn::Vec<D> x) {
  using A = hn::TFromD<D>;
  const auto low = hn::Set(d, sizeof(A) == 4 ? A(-87.33) : A(-700)),
             high = hn::Set(d, sizeof(A) == 4 ? A(88.37) : A(700));
  // Comparisons instead of Min and Max, which would lose a NaN.
  const auto y = exp_in_range(d, hn::IfThenElse(hn::Gt(x, high), high, x));
  return hn::IfThenZeroElse(hn::Lt(x, low), y);
}

/// 1 / (1 + exp(-x)); it may be a number if x is NaN.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, hn::TFromD<D>(1)), bound = hn::Set(d, hn::TFromD<D>(87));
  return hn::Div(one, hn::Add(one, exp_in_range(d, hn::Min(hn::Max(hn::Neg(x), hn::Neg(bound)), bound))));
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
