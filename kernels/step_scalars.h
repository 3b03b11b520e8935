// The values that change from step to step, in one struct in device memory.
#pragma once

#include <cstdint>

namespace choir::kernels {

/// Kernels read these by pointer, so that a captured step can be replayed with new values.
struct StepScalars {
  std::uint64_t step = 0;      ///< the step being computed, from 1
  float rate = 0;              ///< learning rate
  float bias_correction1 = 1;  ///< 1 / (1 - beta1^step)
  float bias_correction2 = 1;  ///< 1 / (1 - beta2^step)
  float clip_factor = 1;       ///< every gradient is multiplied by this before it is used
};

}  // namespace choir::kernels
