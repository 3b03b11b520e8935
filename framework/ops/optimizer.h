// Optimizer updates, gradient norm and clip factor.
#pragma once

#include <vector>

#include "framework/core/runtime.h"
#include "kernels/digest.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "kernels/verdict.h"

namespace choir::ops {

/// One AdamW update of `weight` [n] and its moments [n]; `value` (bf16) may be empty. `segments` holds
/// kernels::OptimizerSegment in device memory, relative to the tensors.
void adamw(Runtime&, const Tensor& weight, const Tensor& gradient, const Tensor& first_moment,
           const Tensor& second_moment, const Tensor& value, const Tensor& segments, double beta1, double beta2,
           float epsilon);

/// One SGD update; `momentum_buffer` may be empty if momentum is 0.
void sgd(Runtime&, const Tensor& weight, const Tensor& gradient, const Tensor& momentum_buffer, const Tensor& value,
         const Tensor& segments, float momentum);

/// weight [n] -= step * sign(gradient [n])
void sign_step(Runtime&, const Tensor& weight, const Tensor& gradient, float step);

/// sum (one f64) = the sum of squares of the ranges of x. `ranges` holds kernels::Range in device memory, of `count`
/// elements in all.
void squared_norm(Runtime&, const Tensor& x, const Tensor& ranges, std::int64_t count, const Tensor& sum);

/// clip_factor of the runtime's StepScalars from the squared norm (one f64) and the limit (0: no limit).
void clip_factor(Runtime&, const Tensor& squared_norm, double limit);

/// Whether the updates of this step change anything: the verdict in the runtime's StepScalars (kernels/verdict.h).
/// `loss_sum` and `squared_norm` are one f64 each; `loss_sum` may be empty. `window` holds one kernels::SpikeWindow of
/// which `length` entries are used; if it is empty, only what is not finite is rejected.
void judge_step(Runtime&, const Tensor& loss_sum, const Tensor& squared_norm, const Tensor& window, std::int64_t length,
                double sigma);

/// digests (u8, one u64 for each range) = those of ranges of x [n] f32 (kernels/digest.h). `ranges` holds
/// kernels::Range in device memory.
void digest(Runtime&, const Tensor& x, const Tensor& ranges, const Tensor& digests);

}  // namespace choir::ops
