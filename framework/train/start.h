// What `choir train` starts from. Everything is decided before anything in the run folder is changed, so that a start
// that is refused has changed nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/reader.h"
#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/train/dataset.h"
#include "framework/train/run_folder.h"

namespace choir {

/// Which checkpoint of the run folder the user wants to continue from.
struct Resume {
  bool asked = false;                     ///< --resume; else the folder must not hold a run
  std::optional<std::int64_t> step = {};  ///< --resume=STEP; else the newest whole one
};

struct Start {
  std::optional<CheckpointReader> checkpoint;  ///< none: initial weights
  bool resumes = false;                        ///< with its optimizer state and position; else only its weights
  RunRecord record;
  std::vector<std::string> newer;  ///< checkpoints of later steps, which are set aside
  std::vector<std::string> notes;  ///< messages for the user, one line each

  std::int64_t step() const { return resumes ? checkpoint->step() : 0; }
};

/// Collective over mesh.host. Takes the lock of the folder on rank 0, unless the wait for it is stopped. Throws
/// ConfigError, on every rank, if the folder is in use or holds a run that is not to be resumed, or if the
/// configuration does not fit the checkpoint; SharedError if the run has published checkpoints and none of them can be
/// used.
Start find_start(const Config&, const RunFolder&, const Resume&, const LockWait&, const Dataset&, Mesh&,
                 std::optional<RunLock>& lock);

/// For rank 0, which holds the lock: sets aside the checkpoints of later steps, and cuts metrics.jsonl at start.step().
/// Returns messages for the user, one line each. Throws Error.
std::vector<std::string> prepare_folder(const RunFolder&, const Config&, const Start&);

}  // namespace choir
