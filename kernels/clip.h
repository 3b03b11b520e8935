// The factor that scales the global gradient norm down to a limit (Pascanu et al. 2013, arXiv 1211.5063).
#pragma once

#include "kernels/step_scalars.h"
#include "kernels/types.h"

namespace choir::kernels {

/// scalars->clip_factor = min(1, limit / sqrt(*squared_norm)); 1 if limit is 0.
void clip_factor(Cpu, const double* squared_norm, double limit, StepScalars* scalars);
void clip_factor(Cuda, const double* squared_norm, double limit, StepScalars* scalars);

}  // namespace choir::kernels
