// AdamW or SGD on the part of the parameters that this rank updates.
#pragma once

#include <string>
#include <vector>

#include "framework/optim/optimizer_config.h"
#include "framework/parallel/data.h"

namespace choir {

class Optimizer {
 public:
  /// One flat f32 array of state, e.g. AdamW's first moment, over the ranges data.updated(), one after another.
  struct StateArray {
    std::string name;  ///< "first_moment", "second_moment", "momentum"
    Tensor values;
  };

  /// `store` and `data` outlive the optimizer. State starts at zero.
  Optimizer(const OptimizerConfig&, ParameterStore& store, DataParallel& data, Context&);

  /// The state was zero after step `step`, which is 0 unless a run continued with another optimizer: AdamW's bias
  /// corrections count the updates since.
  void set_state_origin(std::int64_t step) { state_origin_ = step; }
  std::int64_t state_origin() const { return state_origin_; }

  /// The scalars that the step's kernels need, for step `step` (from 1) at learning rate `rate`.
  kernels::StepScalars scalars(std::int64_t step, double rate) const;

  /// Updates all parameters from complete gradients: norm over all ranks, clip, update, and with ZeRO the gather.
  /// Returns the gradient norm before clipping as one f64 on the device: its square.
  Tensor step(Context&);

  const std::vector<StateArray>& state() const { return state_; }
  /// Where the state of element `flat` of the flat arrays lies in the state arrays; it is one of data.updated().
  std::int64_t state_offset(std::int64_t flat) const;

 private:
  /// One kernel call: a range of the flat arrays, and its segments (kernels::OptimizerSegment) relative to it.
  struct Shard {
    FlatRange flat;
    std::int64_t state_begin;
    Tensor segments;
  };

  OptimizerConfig config_;
  ParameterStore& store_;
  DataParallel& data_;
  std::vector<Shard> shards_;
  std::vector<StateArray> state_;
  Tensor counted_;  // kernels::Range: what this rank adds to the gradient norm
  std::int64_t counted_elements_ = 0;
  Tensor squared_norm_;
  std::int64_t state_origin_ = 0;
};

}  // namespace choir
