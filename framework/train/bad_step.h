// What is kept of a step that was rejected (kernels/verdict.h), so that `choir replay` can compute it again.
//
//   bad-step-12/step-00000011/   in the run folder: the state before step 12, an ordinary checkpoint. Its state has, besides
//                                that of any checkpoint, the keys below.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "framework/checkpoint/checkpoint.h"
#include "framework/train/run_folder.h"
#include "framework/train/snapshot.h"

namespace choir {

/// A rejected step: state of its checkpoint under "bad_step", "bad_samples" (as LeftOut::text()), "bad_loss" and
/// "bad_gradient_norm".
struct BadStep {
  std::int64_t step = 0;
  LeftOut samples;
  double loss = 0, gradient_norm = 0;

  void add_to(State&) const;
};

/// Nothing if the checkpoint does not hold the state before a rejected step. Throws ConfigError if it is not readable.
std::optional<BadStep> bad_step_of(const CheckpointReader&);

/// The path of the bad-step-... folder with the highest step in `run`, or nothing. Throws Error if `run` cannot be
/// listed.
std::optional<std::string> newest_bad_step(const std::string& run);

/// Removes all bad-step-... folders but the `keep` with the highest steps; 0: none. Returns what could not be removed,
/// or
/// "".
std::string prune_bad_steps(const std::string& run, std::int64_t keep);

}  // namespace choir
