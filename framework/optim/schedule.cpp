#include "framework/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace choir {

double learning_rate(const OptimizerConfig& c, std::int64_t step, std::int64_t steps) {
  if (step <= c.warmup) return c.rate * static_cast<double>(step) / static_cast<double>(c.warmup);
  // How much of the fall is behind us, 0 to 1.
  const auto share = [&](std::int64_t begin) {
    return steps <= begin
               ? 1.0
               : std::clamp(static_cast<double>(step - begin) / static_cast<double>(steps - begin), 0.0, 1.0);
  };
  const double lowest = c.final_rate * c.rate;
  if (c.schedule == "cosine")
    return lowest + (c.rate - lowest) * 0.5 * (1 + std::cos(std::numbers::pi * share(c.warmup)));
  if (c.schedule == "linear") return lowest + (c.rate - lowest) * (1 - share(c.warmup));
  if (c.schedule == "warmup_stable_decay") {
    const std::int64_t begin = steps - c.decay;
    return step <= begin ? c.rate : lowest + (c.rate - lowest) * (1 - share(begin));
  }
  return c.rate;
}

}  // namespace choir
