// Optimizer updates, computed in f32: one pass over memory, and one kernel for all parameters.
//
//   g   = clip_factor * gradient
//   AdamW (Loshchilov, Hutter 2017, arXiv 1711.05101):
//     m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2    (MovingAverage)
//     w = w - rate * (weight_decay * w + m c1 / (sqrt(v c2) + epsilon)),  c1, c2 the bias corrections of StepScalars
//   SGD:
//     m = momentum m + g
//     w = w - rate * (weight_decay * w + m)
//   Sign step, of parameters that have one:
//     w = w - step * sign(gradient)
//
// Moments that are kept in bf16 are rounded at random: to one of the two next to the f32, the farther from zero with a
// probability equal to the part of the way there, so that a change far below half a unit in the last place is kept on
// average (Gupta et al. 2015, arXiv 1502.02551). The update uses them before they are rounded. The random bits depend
// on the seed, the step and the place of the element in the whole tensor, not on who updates it.
//
// rate, clip_factor, c1 and c2 come from StepScalars in device memory. If the step is not accepted (kernels/verdict.h),
// nothing is written.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/philox.h"
#include "kernels/step_scalars.h"
#include "kernels/types.h"

namespace choir::kernels {

/// Where elements that follow one another in a part of a tensor are in the whole one: the part has some of its columns.
struct PlaceInTensor {
  std::int64_t first = 0;    ///< of the part: element 0
  std::int64_t columns = 1;  ///< of the part
  std::int64_t width = 1;    ///< of the whole tensor
  std::int64_t origin = 0;   ///< in the whole tensor: the first element of the part

  constexpr std::int64_t operator()(std::int64_t i) const {
    if (columns == width) return origin + first + i;
    const std::int64_t row = (first + i) / columns;
    return origin + row * width + (first + i - row * columns);
  }
  /// So many elements from i on are neighbours in the whole tensor.
  constexpr std::int64_t neighbours(std::int64_t i) const {
    return columns == width ? std::numeric_limits<std::int64_t>::max() : columns - (first + i) % columns;
  }
};

/// The upper half of `bits` of an f32 that is not NaN, rounded at random by the lower half of `random`.
constexpr std::uint32_t round_at_random(std::uint32_t bits, std::uint32_t random) {
  return (bits + (random & 0xffffu)) >> 16;
}

/// Neighbouring elements with the same decay. Their state is [begin, end) of the arrays of state.
struct OptimizerSegment {
  std::int64_t begin, end;
  float weight_decay;
  float* weight = nullptr;  ///< the f32 master, [end - begin]
  const float* gradient = nullptr;
  bf16* value = nullptr;  ///< rounded copy of weight for a bf16 run, or null
  /// Of the rounding of moments in bf16: halves of philox_word(key, step, place(element)), the lower one for the first.
  std::uint64_t key = 0;
  PlaceInTensor place{};
};

/// average = beta average + (1 - beta) x, in f32 with factors that are computed in f64. beta is kept in two parts: in
/// one f32, 0.999 is off by 1.3e-8, which moves a long average by 1.3e-8 / (1 - beta) = 1.3e-5 of itself.
struct MovingAverage {
  float keep, keep_rest;  ///< beta = keep + keep_rest
  float take;             ///< 1 - beta

  explicit MovingAverage(double beta)
      : keep(static_cast<float>(beta)),
        keep_rest(static_cast<float>(beta - double{static_cast<float>(beta)})),
        take(static_cast<float>(1 - beta)) {}
};

/// M: float, or bf16.
template <class M>
struct AdamW {
  const OptimizerSegment* segments;  ///< disjoint, their states in ascending order
  std::int64_t num_segments;
  std::int64_t count;  ///< elements of the state
  M* first_moment;
  M* second_moment;
  const StepScalars* scalars;
  MovingAverage first, second;
  float epsilon;
};

struct Sgd {
  const OptimizerSegment* segments;  ///< as of AdamW
  std::int64_t num_segments;
  std::int64_t count;
  float* momentum_buffer = nullptr;  ///< null if momentum == 0
  const StepScalars* scalars;
  float momentum;
};

struct SignStep {
  float* weight;
  const float* gradient;
  std::int64_t count;
  float step;
  const StepScalars* scalars;
};

template <class M>
void adamw(Cpu, const AdamW<M>&);
template <class M>
void adamw(Cuda, const AdamW<M>&);
void sgd(Cpu, const Sgd&);
void sgd(Cuda, const Sgd&);
void sign_step(Cpu, const SignStep&);
void sign_step(Cuda, const SignStep&);

}  // namespace choir::kernels
