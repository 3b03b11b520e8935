// Start values: standard normals by the method of Box, Muller (1958), from Philox blocks.
//
//   (z0, z1) = sqrt(-2 log u) (cos a, sin a),   u = (w0 / 2^8 + 1) / 2^24 in (0, 1],   a = 2 pi w1 / 2^32
//
// from words w0, w1 of a block, (z2, z3) from w2, w3. The start values of a model must not depend on the machine that
// computes them, so every step is an operation whose result IEEE 754 defines: integers, +, *, sqrt, and multiply-add
// rounded once. Every product is therefore the argument of a multiply_add(), which no compiler can fuse any further.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/random_normal.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/simd.h"

#ifndef CHOIR_KERNELS_CPU_RANDOM_NORMAL_ARGUMENTS
#define CHOIR_KERNELS_CPU_RANDOM_NORMAL_ARGUMENTS
namespace choir::kernels {
namespace {

struct RandomNormal {
  float* x;
  std::int64_t first;
  std::uint64_t key, stream;
  float mean, deviation;
};

}  // namespace
}  // namespace choir::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

/// a * b + c, rounded once. Without such an instruction (SSE2, SSE4), hn::MulAdd() would round the product too.
HWY_INLINE V multiply_add(V a, V b, V c) {
#if !HWY_NATIVE_FMA
  const D d;
  float a_lane[hn::MaxLanes(d)], b_lane[hn::MaxLanes(d)], c_lane[hn::MaxLanes(d)];
  store(d, a, a_lane);
  store(d, b, b_lane);
  store(d, c, c_lane);
  for (std::size_t i = 0; i < hn::MaxLanes(d); ++i) c_lane[i] = std::fma(a_lane[i], b_lane[i], c_lane[i]);
  return load(d, c_lane);
#else
  return hn::MulAdd(a, b, c);
#endif
}

template <class... Rest>
HWY_INLINE V polynomial(V x, float last, Rest... lower) {
  const D d;
  V sum = hn::Set(d, last);
  ((sum = multiply_add(sum, x, hn::Set(d, lower))), ...);
  return sum;
}

/// log x for normal x, to 2 ulp; Moshier's Cephes. x = 2^e (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2).
HWY_INLINE V log(V x) {
  const D d;
  const hn::Rebind<std::int32_t, D> di;
  const auto root_half = hn::Set(di, 0x3f3504f3);
  const auto bits = hn::BitCast(di, x);
  const auto exponent = hn::ShiftRight<23>(hn::Sub(bits, root_half));
  const V f = hn::Sub(hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(exponent))), hn::Set(d, 1.0f));
  const V e = hn::ConvertTo(d, exponent);
  const V f2 = hn::Mul(f, f);
  const V p = polynomial(f, 7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                         -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f);
  V y = multiply_add(hn::Mul(f, f2), p, hn::Mul(e, hn::Set(d, -2.12194440e-4f)));
  y = multiply_add(f2, hn::Set(d, -0.5f), y);
  return multiply_add(e, hn::Set(d, 0.693359375f), hn::Add(f, y));
}

/// Pairs (w0, w1) of words, interleaved, to pairs of normals, in place.
HWY_INLINE void box_muller(std::uint32_t* words, float* normals) {
  const D d;
  const hn::Rebind<std::uint32_t, D> du;
  const hn::Rebind<std::int32_t, D> di;
  hn::Vec<decltype(du)> w0, w1;
  hn::LoadInterleaved2(du, words, w0, w1);
  const auto whole = hn::Add(hn::BitCast(di, hn::ShiftRight<8>(w0)), hn::Set(di, 1));
  const V u = hn::Mul(hn::ConvertTo(d, whole), hn::Set(d, 5.9604644775390625e-8f));  // 2^-24
  const V radius = hn::Sqrt(hn::Mul(log(u), hn::Set(d, -2.0f)));

  // The angle is a whole number of quarter turns and a rest of at most half of one, exact in integers.
  const auto quarter = hn::ShiftRight<30>(hn::Add(w1, hn::Set(du, 0x20000000u)));
  const auto rest = hn::BitCast(di, hn::Sub(w1, hn::ShiftLeft<30>(quarter)));
  const V a = hn::Mul(hn::ConvertTo(d, rest), hn::Set(d, 1.4629180792671596e-9f));  // 2 pi / 2^32
  const V a2 = hn::Mul(a, a);
  const V sin_p = polynomial(a2, -1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f);
  const V sine = multiply_add(hn::Mul(a, a2), sin_p, a);
  const V cosine = polynomial(a2, 2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f, -0.5f, 1.0f);

  // cos and sin of the sum: an odd quarter swaps them; the signs follow from the quarter.
  const auto odd = hn::RebindMask(d, hn::Eq(hn::And(quarter, hn::Set(du, 1u)), hn::Set(du, 1u)));
  const auto cos_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quarter, hn::Set(du, 1u)), hn::Set(du, 2u)));
  const auto sin_sign = hn::ShiftLeft<30>(hn::And(quarter, hn::Set(du, 2u)));
  const V z0 = hn::Mul(radius, hn::Xor(hn::IfThenElse(odd, sine, cosine), hn::BitCast(d, cos_sign)));
  const V z1 = hn::Mul(radius, hn::Xor(hn::IfThenElse(odd, cosine, sine), hn::BitCast(d, sin_sign)));
  hn::StoreInterleaved2(z0, z1, d, normals);
}

void normals(const RandomNormal& args, Part elements) {
  constexpr std::int64_t chunk = 1024;
  const D d;
  alignas(64) std::uint32_t words[chunk + 4 * philox_overrun];
  alignas(64) float z[chunk];
  const auto mean = hn::Set(d, args.mean), deviation = hn::Set(d, args.deviation);
  const std::int64_t end = args.first + elements.end;
  for (std::int64_t i = args.first + elements.begin; i < end;) {
    const std::int64_t chunk_begin = i / chunk * chunk;
    const std::int64_t chunk_end = std::min(chunk_begin + chunk, end);
    philox_blocks(args.key, args.stream, static_cast<std::uint64_t>(chunk_begin / 4), chunk / 4, words);
    for (std::int64_t j = 0; j < chunk; j += 2 * lanes(d)) box_muller(words + j, z + j);
    const float* from = z + (i - chunk_begin);
    float* x = args.x + (i - args.first);
    for_each_vector(d, chunk_end - i, [&](auto j, auto extent) HWY_ATTR {
      store(d, multiply_add(load(d, from + j, extent), deviation, mean), x + j, extent);
    });
    i = chunk_end;
  }
}

cpu::KernelSet<RandomNormal> kernels() { return {normals}; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

void random_normal(Cpu cpu, float* x, std::int64_t first, std::int64_t count, std::uint64_t key, std::uint64_t stream,
                   float mean, float deviation) {
  const RandomNormal args{x, first, key, stream, mean, deviation};
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, count, 1, 1024);
}

}  // namespace choir::kernels
#endif
