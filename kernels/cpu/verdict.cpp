#include "kernels/verdict.h"

#include <algorithm>
#include <cmath>

namespace choir::kernels {
namespace {

double deviations(double value, const double* known, int count) {
  double sum = 0, squares = 0;
  for (int i = 0; i < count; ++i) sum += known[i];
  const double mean = sum / count;
  for (int i = 0; i < count; ++i) squares += (known[i] - mean) * (known[i] - mean);
  return (value - mean) / std::max(std::sqrt(squares / (count - 1)), least_deviation * std::abs(mean));
}

}  // namespace

void judge_step(Cpu, const Verdict& args) {
  StepScalars& scalars = *args.scalars;
  const double loss = args.loss_sum ? *args.loss_sum / scalars.targets : 0, norm = std::sqrt(*args.squared_norm);
  double of_loss = 0, of_norm = 0;
  const bool is_behind = args.rejected && *args.rejected > 0;
  bool accepted = !is_behind && std::isfinite(loss) && std::isfinite(norm);
  if (args.window && accepted) {
    SpikeWindow& window = *args.window;
    const int known = static_cast<int>(std::min<std::int64_t>(window.accepted, args.length));
    if (known >= 2 && 2 * known >= args.length) {
      of_loss = deviations(loss, window.losses, known);
      of_norm = deviations(norm, window.norms, known);
    }
    accepted = of_loss <= args.sigma && of_norm <= args.sigma;
    if (accepted) {
      const std::int64_t at = window.accepted++ % args.length;
      window.losses[at] = loss;
      window.norms[at] = norm;
    }
  }
  scalars.loss_deviations = static_cast<float>(of_loss);
  scalars.norm_deviations = static_cast<float>(of_norm);
  scalars.accepted = accepted ? 1 : 0;
  if (args.rejected && !accepted && !is_behind) *args.rejected = scalars.step;
}

}  // namespace choir::kernels
