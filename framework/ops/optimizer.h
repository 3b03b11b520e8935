// Optimizer updates, gradient norm and clip factor.
#pragma once

#include <vector>

#include "framework/core/runtime.h"
#include "kernels/digest.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "kernels/verdict.h"

namespace choir::ops {

/// Neighbouring elements that an update treats alike.
struct Update {
  std::int64_t state_begin;  ///< their first element in the arrays of state
  float weight_decay;
  Tensor weight, gradient;  ///< [n] f32
  Tensor value;             ///< [n] bf16, or empty
  /// Of the random rounding of moments in bf16: OptimizerSegment::key and place.
  std::uint64_t key = 0;
  kernels::PlaceInTensor place{};
};

/// Everything that one kernel updates. The memory of the tensors outlives it.
struct UpdateTable {
  Tensor segments;                         ///< kernels::OptimizerSegment in device memory
  std::int64_t elements = 0, rounded = 0;  ///< of all updates, and of those with values in bf16
  std::int64_t state_size = 0;             ///< the least that an array of state has
};

/// The updates in any order; their states do not overlap.
UpdateTable make_update_table(Runtime&, std::vector<Update>);

/// One AdamW update, with moments [state] f32, or bf16 rounded at random.
void adamw(Runtime&, const UpdateTable&, const Tensor& first_moment, const Tensor& second_moment, double beta1,
           double beta2, float epsilon);

/// One SGD update; `momentum_buffer` [state] may be empty if momentum is 0.
void sgd(Runtime&, const UpdateTable&, const Tensor& momentum_buffer, float momentum);

/// weight [n] -= step * sign(gradient [n])
void sign_step(Runtime&, const Tensor& weight, const Tensor& gradient, float step);

/// sum (one f64) = the sum of squares of the ranges of x. `ranges` holds kernels::Range in device memory, of `count`
/// elements in all.
void squared_norm(Runtime&, const Tensor& x, const Tensor& ranges, std::int64_t count, const Tensor& sum);

/// clip_factor of the runtime's StepScalars from the squared norm (one f64) and the limit (0: no limit).
void clip_factor(Runtime&, const Tensor& squared_norm, double limit);

/// Whether the updates of this step change anything: the verdict in the runtime's StepScalars (kernels/verdict.h).
/// `loss_sum` and `squared_norm` are one f64 each; `loss_sum` may be empty. `window` holds one kernels::SpikeWindow of
/// which `length` entries are used; if it is empty, only what is not finite is rejected. `rejected`: one u64, or empty.
void judge_step(Runtime&, const Tensor& loss_sum, const Tensor& squared_norm, const Tensor& window, std::int64_t length,
                double sigma, const Tensor& rejected = {});

/// digests (u8, one u64 for each range) = those of ranges of x [n] f32 or bf16 (kernels/digest.h). `ranges` holds
/// kernels::Range in device memory.
void digest(Runtime&, const Tensor& x, const Tensor& ranges, const Tensor& digests);

}  // namespace choir::ops
