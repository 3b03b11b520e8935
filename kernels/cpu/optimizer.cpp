// The optimizer updates on the CPU. The threads divide the state, not the segments: a model has hundreds of segments of
// a few elements and a few of millions.
#include "kernels/optimizer.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include "hwy/foreach_target.h"
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

void adamw_part(const AdamW& args, Part elements) {
  const hn::ScalableTag<float> d;
  const StepScalars& scalars = *args.scalars;
  if (!scalars.accepted) return;
  const auto rate = hn::Set(d, scalars.rate), clip = hn::Set(d, scalars.clip_factor);
  const auto correction1 = hn::Set(d, scalars.bias_correction1), correction2 = hn::Set(d, scalars.bias_correction2);
  const auto keep1 = hn::Set(d, args.first.keep), keep2 = hn::Set(d, args.second.keep);
  const auto rest1 = hn::Set(d, args.first.keep_rest), rest2 = hn::Set(d, args.second.keep_rest);
  const auto take1 = hn::Set(d, args.first.take), take2 = hn::Set(d, args.second.take);
  const auto epsilon = hn::Set(d, args.epsilon);
  for_each_segment(args, elements, [&](const OptimizerSegment& segment, std::int64_t begin, std::int64_t end) HWY_ATTR {
    const auto decay = hn::Set(d, segment.weight_decay);
    for_each_vector(d, end - begin, [&](auto offset, auto extent) HWY_ATTR {
      const std::int64_t i = begin + offset, at = i - segment.begin;
      const auto w = load(d, segment.weight + at, extent);
      const auto g = hn::Mul(clip, load(d, segment.gradient + at, extent));
      const auto m0 = load(d, args.first_moment + i, extent), v0 = load(d, args.second_moment + i, extent);
      const auto m = hn::MulAdd(keep1, m0, hn::MulAdd(rest1, m0, hn::Mul(take1, g)));
      const auto v = hn::MulAdd(keep2, v0, hn::MulAdd(rest2, v0, hn::Mul(hn::Mul(take2, g), g)));
      const auto deviation = hn::Add(hn::Sqrt(hn::Mul(v, correction2)), epsilon);
      const auto direction = hn::MulAdd(decay, w, hn::Div(hn::Mul(m, correction1), deviation));
      const auto updated = hn::NegMulAdd(rate, direction, w);
      store(d, m, args.first_moment + i, extent);
      store(d, v, args.second_moment + i, extent);
      store(d, updated, segment.weight + at, extent);
      if (segment.value) store(d, updated, segment.value + at, extent);
    });
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

cpu::KernelSet<AdamW, Sgd> kernels() { return {adamw_part, sgd_part}; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

void adamw(Cpu cpu, const AdamW& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.count, 1, 64);
}

void sgd(Cpu cpu, const Sgd& args) { cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.count, 1, 64); }

// A few elements of a model: one thread.
void sign_step(Cpu, const SignStep& args) {
  if (!args.scalars->accepted) return;
  for (std::int64_t i = 0; i < args.count; ++i)
    args.weight[i] -= args.step * static_cast<float>((args.gradient[i] > 0) - (args.gradient[i] < 0));
}

}  // namespace choir::kernels
#endif
