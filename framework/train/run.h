// A training run from its first step to its last: steps, evaluation, checkpoints, metrics, and a clean stop.
#pragma once

#include <functional>
#include <string>

#include "framework/comm/call_ring.h"
#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/train/run_folder.h"
#include "framework/train/start.h"

namespace choir {

/// Why a run ended; the process's exit code.
enum class RunEnd : int {
  done = 0,
  failed = 1,         ///< a non-finite loss, named on the terminal; nothing was saved over the last good checkpoint
  requeue = 75,       ///< saved after SIGUSR1 or SIGTERM, and wants to go on later
  interrupted = 130,  ///< saved after SIGINT
};

struct RunOptions {
  RunFolder folder;
  Resume resume;
  /// The width of the terminal that a person watches, for one line that changes; empty: nobody watches.
  std::function<int()> columns;
  /// The exit code that a signal received so far asks for, or RunEnd::done. Asked on every rank once a step, and once a
  /// micro-batch of an evaluation.
  std::function<RunEnd()> stop_requested;
};

/// Collective over the mesh. `ring` is this rank's, and goes to the run folder when the run begins. Throws ConfigError
/// for what is the user's mistake; then nothing in the run folder has been changed.
RunEnd run_training(const Config&, const RunOptions&, Device&, Mesh&, CallRing& ring);

}  // namespace choir
