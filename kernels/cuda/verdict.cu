// One warp: a window is a few hundred values.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/verdict.h"

namespace choir::kernels {
namespace {

constexpr int lanes = 32;

__device__ double deviations(double value, const double* known, int count) {
  double sum = 0, squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += lanes) sum += known[i];
  const double mean = cuda::block_sum(sum) / count;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += lanes) squares += (known[i] - mean) * (known[i] - mean);
  const double deviation = sqrt(cuda::block_sum(squares) / (count - 1));
  return (value - mean) / fmax(deviation, least_deviation * fabs(mean));
}

__global__ void __launch_bounds__(lanes) verdict_kernel(Verdict args) {
  StepScalars& scalars = *args.scalars;
  const double loss = args.loss_sum ? *args.loss_sum / scalars.targets : 0, norm = sqrt(*args.squared_norm);
  double of_loss = 0, of_norm = 0;
  const bool is_behind = args.rejected && *args.rejected > 0;
  bool accepted = !is_behind && isfinite(loss) && isfinite(norm);
  if (args.window && accepted) {
    SpikeWindow& window = *args.window;
    const std::int64_t before = window.accepted;
    const int known = static_cast<int>(before < args.length ? before : args.length);
    if (known >= 2 && 2 * known >= args.length) {
      of_loss = deviations(loss, window.losses, known);
      of_norm = deviations(norm, window.norms, known);
    }
    accepted = of_loss <= args.sigma && of_norm <= args.sigma;
    __syncthreads();  // every lane has read what lane 0 writes
    if (accepted && threadIdx.x == 0) {
      window.losses[before % args.length] = loss;
      window.norms[before % args.length] = norm;
      window.accepted = before + 1;
    }
  }
  __syncthreads();  // every lane has read *args.rejected
  if (threadIdx.x > 0) return;
  scalars.loss_deviations = static_cast<float>(of_loss);
  scalars.norm_deviations = static_cast<float>(of_norm);
  scalars.accepted = accepted ? 1 : 0;
  if (args.rejected && !accepted && !is_behind) *args.rejected = scalars.step;
}

}  // namespace

void judge_step(Cuda cuda, const Verdict& args) {
  verdict_kernel<<<1, lanes, 0, cuda.stream>>>(args);
  cuda::check_launch("judge_step");
}

}  // namespace choir::kernels
