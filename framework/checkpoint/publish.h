// How a checkpoint comes to exist, and how it goes. Everything here is for one rank of a run.
//
//   step-00001000.tmp   being written; never believed          step-00001000       published: whole when it appeared
//   step-00001000.del   being removed
#pragma once

#include <cstdint>
#include <string>

#include "framework/checkpoint/manifest.h"

namespace choir {

std::string step_name(std::int64_t step);       ///< "step-00001000"
std::int64_t step_of(const std::string& name);  ///< 1000; -1 where it is not the name of a published checkpoint

/// Completes `temporary`, a folder with all rank files that `manifest` lists, by checkpoint.h5 and manifest.json,
/// syncs, verifies sizes and that both can be read, renames it to `folder`/step-…, and syncs `folder`. A checkpoint of
/// the same step is replaced. Calls HDF5. Throws Error or Hdf5Failure; then nothing has been published.
void publish(const std::string& folder, const std::string& temporary, Manifest manifest);

/// Of the checkpoints up to `step`, the newest `keep` whole ones stay (0: all), `step` among them; the rest goes.
/// Returns what could not be removed, or "".
std::string prune(const std::string& folder, std::int64_t step, std::int64_t keep);

/// Removes what a killed run has left: step-….tmp and step-….del. Returns what could not be removed, or "".
std::string sweep(const std::string& folder);

/// Removes a folder and what is in it. Returns why it could not, or "".
std::string remove_folder(const std::string& path);

}  // namespace choir
