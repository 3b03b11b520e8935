// The residual branch on the CPU. Dropout's random words are made a chunk at a time in the first-level cache.
#include "kernels/residual.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/residual.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

/// The factors of dropout for up to `capacity` consecutive elements: 0 or 1 / (1 - p).
template <class A>
class DropoutFactors {
 public:
  static constexpr std::int64_t capacity = 1024;

  /// The factors of elements [first, first + count) of the global tensor.
  const A* make(const Dropout& dropout, std::int64_t first, std::int64_t count) {
    const std::int64_t first_block = first / 4, end_block = (first + count + 3) / 4;
    philox_blocks(dropout.key, dropout.scalars->step, static_cast<std::uint64_t>(first_block), end_block - first_block,
                  words_);
    const std::uint32_t* words = words_ + first % 4;
    const std::uint32_t threshold = drop_below(dropout.p);
    const A scale = static_cast<A>(1 / (1 - dropout.p));
    for (std::int64_t i = 0; i < count; ++i) factors_[i] = words[i] >= threshold ? scale : A(0);
    return factors_;
  }

 private:
  alignas(64) std::uint32_t words_[capacity + 4 * (2 + philox_overrun)];
  alignas(64) A factors_[capacity];
};

/// Calls body(row, first column, count, factors) for pieces of the rows that are `elements`; no factors if p == 0.
template <class A, class Body>
HWY_INLINE void for_each_piece(Part elements, std::int64_t width, const Dropout& dropout, const Body& body) {
  DropoutFactors<A> factors;
  for_each_row(elements, width, [&](std::int64_t row, std::int64_t begin, std::int64_t count) HWY_ATTR {
    if (dropout.p == 0) return body(row, begin, count, nullptr);
    const std::int64_t first_of_row = dropout.rows.global_row(row) * width;
    for (std::int64_t done = 0; done < count; done += factors.capacity) {
      const std::int64_t piece = std::min(count - done, factors.capacity);
      const std::int64_t first = first_of_row + begin + done;
      body(row, begin + done, piece, factors.make(dropout, first, piece));
    }
  });
}

template <class T>
void forward(const ResidualForward<T>& args, Part elements) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for_each_piece<A>(elements, args.width, args.dropout,
                    [&](std::int64_t row, std::int64_t begin, std::int64_t count, const A* factors) HWY_ATTR {
                      const std::int64_t first = row * args.width + begin;
                      const T* x = args.x ? args.x + first : nullptr;
                      const T* delta = args.delta + first;
                      const A* bias = args.bias ? args.bias + begin : nullptr;
                      T* y = args.y + first;
                      for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
                        auto branch = load(d, delta + i, extent);
                        if (bias) branch = hn::Add(branch, load(d, bias + i, extent));
                        if (factors) branch = hn::Mul(branch, load(d, factors + i, extent));
                        if (x) branch = hn::Add(branch, load(d, x + i, extent));
                        store(d, branch, y + i, extent);
                      });
                    });
}

template <class T>
void backward(const ResidualBackward<T>& args, Part elements) {
  using A = Accumulate<T>;
  const Tag<T> d;
  for_each_piece<A>(elements, args.width, args.dropout,
                    [&](std::int64_t row, std::int64_t begin, std::int64_t count, const A* factors) HWY_ATTR {
                      const T* dy = args.dy + row * args.width + begin;
                      T* ddelta = args.ddelta + row * args.width + begin;
                      for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
                        auto slope = load(d, dy + i, extent);
                        if (factors) slope = hn::Mul(slope, load(d, factors + i, extent));
                        store(d, slope, ddelta + i, extent);
                      });
                    });
}

cpu::KernelSet<ResidualForward<float>, ResidualForward<bf16>, ResidualForward<double>,  //
               ResidualBackward<float>, ResidualBackward<bf16>, ResidualBackward<double>>
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
void residual_forward(Cpu cpu, const ResidualForward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows * args.width, 1, 64);
}

template <class T>
void residual_backward(Cpu cpu, const ResidualBackward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows * args.width, 1, 64);
}

template void residual_forward(Cpu, const ResidualForward<float>&);
template void residual_forward(Cpu, const ResidualForward<bf16>&);
template void residual_forward(Cpu, const ResidualForward<double>&);
template void residual_backward(Cpu, const ResidualBackward<float>&);
template void residual_backward(Cpu, const ResidualBackward<bf16>&);
template void residual_backward(Cpu, const ResidualBackward<double>&);

}  // namespace choir::kernels
#endif
