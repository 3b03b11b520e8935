// The optimizer updates on the CPU. The threads divide the state, not the segments: a model has hundreds of segments of
// a few elements and a few of millions.
#include "kernels/optimizer.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

/// Calls body(segment, begin, end) for what `elements` has in common with each segment.
template <class Args, class Body>
HWY_INLINE void for_each_segment(const Args& args, Part elements, const Body& body) {
  for (std::int64_t i = 0; i < args.num_segments; ++i) {
    const OptimizerSegment& segment = args.segments[i];
    const std::int64_t begin = std::max(segment.begin, elements.begin), end = std::min(segment.end, elements.end);
    if (begin < end) body(segment, begin, end);
  }
}

/// The random words of elements of a tensor, for the rounding of moments; f32 moments have none.
template <class M>
class RandomWords {
 public:
  /// Those of elements from i on of the segment, of `count` of them at most; returns how many there are.
  HWY_INLINE std::int64_t make(const OptimizerSegment&, std::uint64_t, std::int64_t, std::int64_t count) {
    return count;
  }
};

template <>
class RandomWords<bf16> {
 public:
  HWY_INLINE std::int64_t make(const OptimizerSegment& segment, std::uint64_t step, std::int64_t i,
                               std::int64_t count) {
    count = std::min({count, segment.place.neighbours(i), capacity});
    const std::int64_t first = segment.place(i), first_block = first / 4;
    philox_blocks(segment.key, step, static_cast<std::uint64_t>(first_block), (first + count + 3) / 4 - first_block,
                  words_);
    begin_ = words_ + first % 4;
    return count;
  }
  const std::uint32_t* begin() const { return begin_; }

 private:
  static constexpr std::int64_t capacity = 1024;
  alignas(64) std::uint32_t words_[capacity + 4 * (2 + philox_overrun)];
  const std::uint32_t* begin_ = nullptr;
};

/// Stores the moments of the elements from i on.
template <class D, class Extent>
HWY_INLINE void store_moments(D d, const RandomWords<float>&, std::int64_t, hn::Vec<D> m, hn::Vec<D> v, float* first,
                              float* second, Extent extent) {
  store(d, m, first, extent);
  store(d, v, second, extent);
}

template <class D>
HWY_INLINE void store_bits(D, hn::Vec<hn::Rebind<std::uint32_t, D>> bits, bf16* to, Whole = {}) {
  const hn::Rebind<std::uint16_t, D> du16;
  const hn::Rebind<std::int32_t, D> di32;
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, bits)), du16, reinterpret_cast<std::uint16_t*>(to));
}
template <class D>
HWY_INLINE void store_bits(D d, hn::Vec<hn::Rebind<std::uint32_t, D>> bits, bf16* to, Rest rest) {
  bf16 whole[hn::MaxLanes(d)];
  store_bits(d, bits, whole);
  std::memcpy(static_cast<void*>(to), whole, static_cast<std::size_t>(rest.count) * sizeof(bf16));
}

template <class D, class Extent>
HWY_INLINE void store_moments(D d, const RandomWords<bf16>& words, std::int64_t i, hn::Vec<D> m, hn::Vec<D> v,
                              bf16* first, bf16* second, Extent extent) {
  const hn::Rebind<std::uint32_t, D> du32;
  const auto random = hn::LoadU(du32, words.begin() + i);  // also beyond the rest
  const auto rounded = [&](auto value, auto bits)
                           HWY_ATTR { return hn::ShiftRight<16>(hn::Add(hn::BitCast(du32, value), bits)); };
  store_bits(d, rounded(m, hn::And(random, hn::Set(du32, 0xffffu))), first, extent);
  store_bits(d, rounded(v, hn::ShiftRight<16>(random)), second, extent);
}

template <class M>
void adamw_part(const AdamW<M>& args, Part elements) {
  const hn::ScalableTag<float> d;
  const StepScalars& scalars = *args.scalars;
  if (!scalars.accepted) return;
  const auto rate = hn::Set(d, scalars.rate), clip = hn::Set(d, scalars.clip_factor);
  const auto correction1 = hn::Set(d, scalars.bias_correction1), correction2 = hn::Set(d, scalars.bias_correction2);
  const auto keep1 = hn::Set(d, args.first.keep), keep2 = hn::Set(d, args.second.keep);
  const auto rest1 = hn::Set(d, args.first.keep_rest), rest2 = hn::Set(d, args.second.keep_rest);
  const auto take1 = hn::Set(d, args.first.take), take2 = hn::Set(d, args.second.take);
  const auto epsilon = hn::Set(d, args.epsilon);
  RandomWords<M> words;
  for_each_segment(args, elements, [&](const OptimizerSegment& segment, std::int64_t begin, std::int64_t end) HWY_ATTR {
    const auto decay = hn::Set(d, segment.weight_decay);
    for (std::int64_t piece = begin; piece < end;) {
      const std::int64_t count = words.make(segment, scalars.step, piece - segment.begin, end - piece);
      for_each_vector(d, count, [&](auto offset, auto extent) HWY_ATTR {
        const std::int64_t i = piece + offset, at = i - segment.begin;
        const auto w = load(d, segment.weight + at, extent);
        const auto g = hn::Mul(clip, load(d, segment.gradient + at, extent));
        const auto m0 = load(d, args.first_moment + i, extent), v0 = load(d, args.second_moment + i, extent);
        const auto m = hn::MulAdd(keep1, m0, hn::MulAdd(rest1, m0, hn::Mul(take1, g)));
        const auto v = hn::MulAdd(keep2, v0, hn::MulAdd(rest2, v0, hn::Mul(hn::Mul(take2, g), g)));
        const auto deviation = hn::Add(hn::Sqrt(hn::Mul(v, correction2)), epsilon);
        const auto direction = hn::MulAdd(decay, w, hn::Div(hn::Mul(m, correction1), deviation));
        const auto updated = hn::NegMulAdd(rate, direction, w);
        store_moments(d, words, offset, m, v, args.first_moment + i, args.second_moment + i, extent);
        store(d, updated, segment.weight + at, extent);
        if (segment.value) store(d, updated, segment.value + at, extent);
      });
      piece += count;
    }
  });
}

void sgd_part(const Sgd& args, Part elements) {
  const hn::ScalableTag<float> d;
  if (!args.scalars->accepted) return;
  const auto rate = hn::Set(d, args.scalars->rate), clip = hn::Set(d, args.scalars->clip_factor);
  const auto momentum = hn::Set(d, args.momentum);
  for_each_segment(args, elements, [&](const OptimizerSegment& segment, std::int64_t begin, std::int64_t end) HWY_ATTR {
    const auto decay = hn::Set(d, segment.weight_decay);
    for_each_vector(d, end - begin, [&](auto offset, auto extent) HWY_ATTR {
      const std::int64_t i = begin + offset, at = i - segment.begin;
      const auto w = load(d, segment.weight + at, extent);
      auto m = hn::Mul(clip, load(d, segment.gradient + at, extent));
      if (args.momentum_buffer) {
        m = hn::MulAdd(momentum, load(d, args.momentum_buffer + i, extent), m);
        store(d, m, args.momentum_buffer + i, extent);
      }
      const auto updated = hn::NegMulAdd(rate, hn::MulAdd(decay, w, m), w);
      store(d, updated, segment.weight + at, extent);
      if (segment.value) store(d, updated, segment.value + at, extent);
    });
  });
}

cpu::KernelSet<AdamW<float>, AdamW<bf16>, Sgd> kernels() { return {adamw_part<float>, adamw_part<bf16>, sgd_part}; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class M>
void adamw(Cpu cpu, const AdamW<M>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.count, 1, 64);
}

template void adamw(Cpu, const AdamW<float>&);
template void adamw(Cpu, const AdamW<bf16>&);

void sgd(Cpu cpu, const Sgd& args) { cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.count, 1, 64); }

// A few elements of a model: one thread.
void sign_step(Cpu, const SignStep& args) {
  if (!args.scalars->accepted) return;
  for (std::int64_t i = 0; i < args.count; ++i)
    args.weight[i] -= args.step * static_cast<float>((args.gradient[i] > 0) - (args.gradient[i] < 0));
}

}  // namespace choir::kernels
#endif
