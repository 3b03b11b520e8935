// Whether a step is accepted: decided on the device, before the update, from values that are the same on all ranks.
//
// A step is rejected if its loss or its gradient norm is not finite, or if one of the two is more than `sigma` standard
// deviations above its mean over the last accepted steps. A host that goes ahead learns of it late: steps that it has
// enqueued behind a rejected one are rejected too, until it says that it knows.
#pragma once

#include <cstdint>

#include "kernels/step_scalars.h"
#include "kernels/types.h"

namespace choir::kernels {

/// The losses and gradient norms of the last accepted steps.
struct SpikeWindow {
  static constexpr int most = 1024;
  std::int64_t accepted = 0;                   ///< steps so far
  double losses[most] = {}, norms[most] = {};  ///< of accepted step i, from 0, at i % (length of the window)
};

struct Verdict {
  const double* loss_sum = nullptr;  ///< over StepScalars::targets; null: only the norm is judged
  const double* squared_norm = nullptr;
  SpikeWindow* window = nullptr;  ///< null: only what is not finite is rejected
  int length = 0;  ///< of the window, 2 to SpikeWindow::most; nothing is compared until half of it is known
  double sigma = 0;
  StepScalars* scalars = nullptr;  ///< `accepted` and the deviations are written
  /// The rejected step of which the host does not know yet, or 0; then this step is rejected, whatever its values.
  /// Null: the host knows of every step before it enqueues the next one.
  std::uint64_t* rejected = nullptr;
};

/// An accepted step enters the window.
void judge_step(Cpu, const Verdict&);
void judge_step(Cuda, const Verdict&);

/// A standard deviation below this share of the mean counts as this share: values that are equal but for rounding.
inline constexpr double least_deviation = 1e-6;

}  // namespace choir::kernels
