// Philox4x32-10 (kernels/philox.h) on vectors: many consecutive blocks at once, with the words of the scalar function.
// Included once per instruction set, like simd.h.

#if defined(CHOIR_KERNELS_CPU_PHILOX_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_PHILOX_H
#undef CHOIR_KERNELS_CPU_PHILOX_H
#else
#define CHOIR_KERNELS_CPU_PHILOX_H
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/philox.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Products of the lower halves of 64-bit lanes.
template <class D>
HWY_INLINE hn::Vec<D> multiply_lower_halves(D, hn::Vec<D> a, hn::Vec<D> b) {
#if HWY_TARGET == HWY_SCALAR
  const auto lower = hn::Set(D(), 0xffffffffu);
  return hn::Mul(hn::And(a, lower), hn::And(b, lower));
#else
  const hn::Repartition<std::uint32_t, D> du32;
  return hn::MulEven(hn::BitCast(du32, a), hn::BitCast(du32, b));
#endif
}

/// The state of as many blocks as a vector has 64-bit lanes. The lower half of each lane is one 32-bit word. The upper
/// half has no meaning, and no operation moves its bits into the lower half.
template <class D>
struct PhiloxState {
  hn::Vec<D> c0, c1, c2, c3;

  HWY_INLINE PhiloxState(D d, std::uint64_t first_block, std::uint64_t stream)
      : c0(hn::Iota(d, first_block)),
        c1(hn::ShiftRight<32>(c0)),
        c2(hn::Set(d, stream)),
        c3(hn::Set(d, stream >> 32)) {}

  HWY_INLINE void round(D d, std::uint32_t key0, std::uint32_t key1) {
    const auto p0 = multiply_lower_halves(d, hn::Set(d, 0xD2511F53u), c0);
    const auto p1 = multiply_lower_halves(d, hn::Set(d, 0xCD9E8D57u), c2);
    c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d, key0));
    c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d, key1));
    c1 = p1;
    c3 = p0;
  }

  HWY_INLINE void write(D d, std::uint32_t* words) const {
    const auto lower = hn::Set(d, 0xffffffffu);
    hn::StoreInterleaved2(hn::Or(hn::And(c0, lower), hn::ShiftLeft<32>(c1)),
                          hn::Or(hn::And(c2, lower), hn::ShiftLeft<32>(c3)), d,
                          reinterpret_cast<std::uint64_t*>(words));
  }
};

/// philox_blocks() writes fewer than this many blocks beyond those requested.
inline constexpr std::int64_t philox_overrun = 16;

/// words[4 b + j] = philox(key, first_block + b, stream)[j] for b in [0, blocks), and up to philox_overrun blocks more.
inline void philox_blocks(std::uint64_t key, std::uint64_t stream, std::uint64_t first_block, std::int64_t blocks,
                          std::uint32_t* words) {
  const hn::ScalableTag<std::uint64_t> d;
  const std::int64_t step = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t block = 0; block < blocks; block += 2 * step) {
    // Two states at a time: a round is one long chain of dependent operations.
    PhiloxState a(d, first_block + static_cast<std::uint64_t>(block), stream);
    PhiloxState b(d, first_block + static_cast<std::uint64_t>(block + step), stream);
    std::uint32_t key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      a.round(d, key0, key1);
      b.round(d, key0, key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    a.write(d, words + 4 * block);
    b.write(d, words + 4 * (block + step));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
