#include "framework/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>

namespace choir {

double learning_rate(const OptimizerConfig& c, std::int64_t step, std::int64_t steps) {
  if (step <= c.warmup) return c.rate * static_cast<double>(step) / static_cast<double>(c.warmup);
  // The share of the fall that is done, 0 to 1.
  const auto share = [&](std::int64_t begin) {
    return steps <= begin
               ? 1.0
               : std::clamp(static_cast<double>(step - begin) / static_cast<double>(steps - begin), 0.0, 1.0);
  };
  const double lowest = c.final_rate * c.rate;
  const std::int64_t decay_begin = steps - c.decay;
  switch (c.schedule) {
    case Schedule::cosine:
      return lowest + (c.rate - lowest) * 0.5 * (1 + std::cos(std::numbers::pi * share(c.warmup)));
    case Schedule::linear:
      return lowest + (c.rate - lowest) * (1 - share(c.warmup));
    case Schedule::constant:
      return c.rate;
    case Schedule::warmup_stable_decay:
      return step <= decay_begin ? c.rate : lowest + (c.rate - lowest) * (1 - share(decay_begin));
  }
  std::abort();  // all values are above
}

}  // namespace choir
