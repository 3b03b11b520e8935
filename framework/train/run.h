// A training run from its first step to its last: steps, evaluation, checkpoints, metrics, and a clean stop.
#pragma once

#include <functional>
#include <string>

#include "framework/comm/mesh.h"
#include "framework/comm/watchdog.h"
#include "framework/config/config.h"
#include "framework/train/run_folder.h"
#include "framework/train/start.h"

namespace choir {

/// Why a run ended; the process's exit code.
enum class RunEnd : int {
  done = 0,
  failed = 1,         ///< what the run was to write could not be written
  not_finite = 3,     ///< a non-finite loss, named on the terminal; nothing was saved over the last good checkpoint
  requeue = 75,       ///< saved after SIGUSR1 or SIGTERM, to be continued later
  interrupted = 130,  ///< saved after SIGINT
};

/// What the signals that this rank has received so far ask for.
struct StopRequest {
  RunEnd end = RunEnd::done;  ///< done: nothing
  double seconds = 0;         ///< since the first of them
};

struct RunOptions {
  RunFolder folder;
  Resume resume;
  /// Returns the width of the terminal on which a person watches one live line; empty: no such terminal.
  std::function<int()> columns;
  /// Called on every rank before the first step, once a step, and once a micro-batch of an evaluation.
  std::function<StopRequest()> stop_request;
};

/// Collective over the mesh, whose communicators write to the ring of `watchdog`; the ring is moved to the run folder
/// when the run begins. Throws ConfigError for a user's mistake; then nothing in the run folder has been changed.
RunEnd run_training(const Config&, const RunOptions&, Device&, Mesh&, Watchdog& watchdog);

}  // namespace choir
