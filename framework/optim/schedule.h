// Learning rates as a pure function of the step.
#pragma once

#include <cstdint>

#include "framework/optim/optimizer_config.h"

namespace choir {

/// The rate of step `step` (from 1) of `steps`. Rises linearly over the warm-up to the highest rate, then
///   cosine, linear         falls to final_rate * rate at the last step
///   constant               stays
///   warmup_stable_decay    stays, and falls linearly over the last `decay` steps (Hu et al. 2024, arXiv 2404.06395)
double learning_rate(const OptimizerConfig&, std::int64_t step, std::int64_t steps);

}  // namespace choir
