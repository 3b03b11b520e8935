// AdamW or SGD on the part of the parameters that this rank updates.
#pragma once

#include <string>
#include <vector>

#include "framework/ops/optimizer.h"
#include "framework/optim/optimizer_config.h"
#include "framework/parallel/shards.h"

namespace choir {

/// What a step has to fulfil to be accepted (kernels/verdict.h). A gradient norm that is not finite never is.
struct StepLimits {
  Tensor loss_sum;          ///< one f64, over StepScalars::targets; empty: the loss is not judged
  Tensor window;            ///< one kernels::SpikeWindow; empty: spikes are not looked for
  std::int64_t length = 0;  ///< of the window
  double sigma = 0;
  Tensor rejected;  ///< Verdict::rejected: one u64, or empty
};

class Optimizer {
 public:
  /// One flat array of state, f32 or as OptimizerConfig::moments says, e.g. AdamW's first moment, over Bucket::updated
  /// of all buckets, one after another.
  struct StateArray {
    std::string name;  ///< "first_moment", "second_moment", "momentum"
    Tensor values;
  };

  /// `shards` outlives the optimizer. State starts at zero. Its arrays are in `memory`, which outlives them; null: in
  /// that of the device.
  Optimizer(const OptimizerConfig&, const ParameterStore&, Shards& shards, Context&, Allocator* memory = nullptr);

  /// AdamW's bias corrections count updates: those until step `step` are not counted. It is 0, unless a run continued
  /// with another optimizer, whose state was zero, or updates were rejected: each of them adds 1.
  void set_state_origin(std::int64_t step) { state_origin_ = step; }
  std::int64_t state_origin() const { return state_origin_; }

  /// The scalars that the step's kernels need, for step `step` (from 1) at learning rate `rate`.
  kernels::StepScalars scalars(std::int64_t step, double rate) const;

  /// Updates all parameters from complete gradients: norm over all ranks, clip, verdict, update; then publishes them.
  /// If the step is rejected, neither weights nor state change; the caller counts it in the state's origin.
  /// Parameters with a Parameter::sign_step are not part of the norm and have a state of zeros.
  /// Returns the gradient norm before clipping as one f64 on the device: its square.
  Tensor step(Context&, const StepLimits& = {});

  const std::vector<StateArray>& state() const { return state_; }
  /// Where the state of element `flat` of some Bucket::updated lies in the state arrays.
  std::int64_t state_offset(std::int64_t flat) const;

 private:
  /// A part of Bucket::updated that gets sign steps.
  struct SignPart {
    Tensor master, gradient;
    float step;
  };

  /// Where the state of a bucket begins.
  struct Piece {
    FlatRange updated;
    std::int64_t state_begin;
  };

  OptimizerConfig config_;
  Shards& shards_;
  std::vector<Piece> pieces_;
  ops::UpdateTable table_;  // all buckets
  std::vector<SignPart> sign_parts_;
  std::vector<StateArray> state_;
  Tensor counted_;  // kernels::Range: what this rank adds to the gradient norm
  std::int64_t counted_elements_ = 0;
  Tensor squared_norm_;
  std::int64_t state_origin_ = 0;
};

}  // namespace choir
