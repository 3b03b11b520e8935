#include "kernels/clip.h"

#include <cmath>

namespace choir::kernels {

void clip_factor(Cpu, const double* squared_norm, double limit, StepScalars* scalars) {
  const double norm = std::sqrt(*squared_norm);
  scalars->clip_factor = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f;
}

}  // namespace choir::kernels
