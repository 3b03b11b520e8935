// What the tests of the optimizers share, on the CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/optimizer.h"

namespace choir::kernels::tests {

inline constexpr double beta1 = 0.9, beta2 = 0.999;
inline constexpr float epsilon = 1e-8f;

/// The scalars of update `step`, from 1: a rate that changes, and gradients that are clipped.
inline StepScalars scalars_of(int step) {
  return {.step = static_cast<std::uint64_t>(step),
          .rate = 1e-2f * static_cast<float>(step),
          .bias_correction1 = static_cast<float>(1 / (1 - std::pow(beta1, step))),
          .bias_correction2 = static_cast<float>(1 / (1 - std::pow(beta2, step))),
          .clip_factor = 0.5f};
}

struct OptimizerCase {
  std::int64_t count;
  std::vector<OptimizerSegment> segments;

  /// The segments with the addresses of their elements in flat arrays.
  std::vector<OptimizerSegment> segments_of(float* weight, const float* gradient, bf16* value) const {
    std::vector<OptimizerSegment> all = segments;
    for (OptimizerSegment& segment : all) {
      segment.weight = weight + segment.begin;
      segment.gradient = gradient + segment.begin;
      segment.value = value ? value + segment.begin : nullptr;
    }
    return all;
  }

  /// The segment of element i; null in a gap, which must not change.
  const OptimizerSegment* segment_of(std::int64_t i) const {
    for (const OptimizerSegment& segment : segments)
      if (i >= segment.begin && i < segment.end) return &segment;
    return nullptr;
  }
};

}  // namespace choir::kernels::tests
