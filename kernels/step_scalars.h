// The values that change from step to step, in one struct in device memory.
#pragma once

#include <cstdint>

namespace choir::kernels {

/// Kernels read these by pointer, so that a captured step can be replayed with new values.
struct StepScalars {
  std::uint64_t step = 0;      ///< the step being computed, from 1
  double targets = 1;          ///< of the global batch: its loss is the sum over them, divided by this
  float rate = 0;              ///< learning rate
  float bias_correction1 = 1;  ///< 1 / (1 - beta1^updates)
  float bias_correction2 = 1;  ///< 1 / (1 - beta2^updates)
  float clip_factor = 1;       ///< every gradient is multiplied by this before it is used
  float loss_deviations = 0;   ///< of the loss and the gradient norm, in standard deviations above the mean of the
  float norm_deviations = 0;   ///< window; 0: not compared (kernels/verdict.h)
  std::uint32_t accepted = 1;  ///< 0: the update of this step changes nothing
};

}  // namespace choir::kernels
