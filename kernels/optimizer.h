// Optimizer updates in f32, one pass over memory, and one kernel for all parameters.
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
// rate, clip_factor, c1 and c2 come from StepScalars in device memory. If the step is not accepted (kernels/verdict.h),
// nothing is written.
#pragma once

#include <cstdint>

#include "kernels/step_scalars.h"
#include "kernels/types.h"

namespace choir::kernels {

/// Neighbouring elements with the same decay. Their state is [begin, end) of the arrays of state.
struct OptimizerSegment {
  std::int64_t begin, end;
  float weight_decay;
  float* weight = nullptr;  ///< the f32 master, [end - begin]
  const float* gradient = nullptr;
  bf16* value = nullptr;  ///< rounded copy of weight for a bf16 run, or null
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

struct AdamW {
  const OptimizerSegment* segments;  ///< disjoint, their states in ascending order
  std::int64_t num_segments;
  std::int64_t count;  ///< elements of the state
  float* first_moment;
  float* second_moment;
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

void adamw(Cpu, const AdamW&);
void adamw(Cuda, const AdamW&);
void sgd(Cpu, const Sgd&);
void sgd(Cuda, const Sgd&);
void sign_step(Cpu, const SignStep&);
void sign_step(Cuda, const SignStep&);

}  // namespace choir::kernels
