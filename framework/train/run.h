// A training run from its first step to its last: steps, evaluation, checkpoints, metrics, and a clean stop.
#pragma once

#include <functional>
#include <string>

#include "framework/comm/call_ring.h"
#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/train/run_folder.h"

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
  bool resume = false;  ///< go on from the newest whole checkpoint of the folder
  bool live = false;    ///< a person watches the terminal: one line that changes
  /// The exit code that a signal received so far asks for, or RunEnd::done. Asked once a step on every rank.
  std::function<RunEnd()> stop_requested;
};

/// Collective over the mesh. `ring` is this rank's. Throws ConfigError for what is the user's mistake.
RunEnd run_training(const Config&, const RunOptions&, Device&, Mesh&, const CallRing& ring);

}  // namespace choir
