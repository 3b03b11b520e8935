#include "kernels/clip.h"
#include "kernels/cuda/failure.h"

namespace choir::kernels {

__global__ void clip_factor_kernel(const double* squared_norm, double limit, StepScalars* scalars) {
  const double norm = sqrt(*squared_norm);
  scalars->clip_factor = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f;
}

void clip_factor(Cuda cuda, const double* squared_norm, double limit, StepScalars* scalars) {
  clip_factor_kernel<<<1, 1, 0, cuda.stream>>>(squared_norm, limit, scalars);
  cuda::check_launch("clip_factor");
}

}  // namespace choir::kernels
