// How a checkpoint is published, and how it is removed. Everything here is for one rank of a run.
//
//   step-00001000.tmp   being written; never read              step-00001000       published: whole when it appeared
//   step-00001000.del   being removed                       step-00001000.aside kept, but no longer part of the run
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint_config.h"
#include "framework/checkpoint/manifest.h"

namespace choir {

std::string step_name(std::int64_t step);       ///< "step-00001000"
std::int64_t step_of(const std::string& name);  ///< 1000; -1 if it is not the name of a published checkpoint

/// The steps of all step-… folders of `folder`, newest first. Empty if there is no such folder. Throws Error if it
/// cannot be listed.
std::vector<std::int64_t> list_steps(const std::string& folder);

/// Adds checkpoint.h5 and manifest.json to `temporary`, a folder with all rank files that `manifest` lists, syncs,
/// verifies sizes and that both can be read, renames it to `folder`/step-…, and syncs `folder`. A checkpoint of
/// the same step is replaced. Calls HDF5. Throws Error or Hdf5Failure; then nothing has been published.
void publish(const std::string& folder, const std::string& temporary, Manifest manifest);

/// Renames step-00001000 to step-00001000.aside (.aside-2, ... if that exists): the run continues without it, and
/// nothing is lost. Returns the new path. Throws Error.
std::string set_aside(const std::string& path);

/// The whole checkpoints of a run, and which of them are kept. A checkpoint that is not whole is not listed here, and
/// so is never removed.
class Retention {
 public:
  /// Reads every manifest in `folder`, once.
  Retention(std::string folder, const CheckpointConfig& config);

  /// `state` is that of a checkpoint just published; the best is chosen by its "held_out_loss", if any.
  void add(std::int64_t step, const State& state);

  /// Removes what the configuration does not keep, and makes the link `best` point to the checkpoint with the lowest
  /// held-out loss. Returns what could not be done, or "".
  std::string prune();

 private:
  std::string folder_;
  CheckpointConfig config_;
  std::map<std::int64_t, double> whole_;  // held-out loss by step; infinite if it is not known
};

/// Removes what a killed run has left: step-….tmp and step-….del. Returns what could not be removed, or "".
std::string sweep(const std::string& folder);

/// Removes a folder and what is in it. Returns why it could not, or "".
std::string remove_folder(const std::string& path);

}  // namespace choir
