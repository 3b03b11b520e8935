// Which checkpoint a user means: one rule for every verb and for train.from.
//
//   a checkpoint's folder, under any name     this one; it holds manifest.json
//   a run folder, or its checkpoints/         the newest whole one in it; those that are passed over are named
//
// A checkpoint is whole if the ranks together have read every byte of it and its digests are right, as for --resume.
#pragma once

#include <functional>
#include <string>

#include "framework/comm/communicator.h"

namespace choir {

/// What a user wrote as `path`, and for which key: "train.from", or the name of a verb's argument.
struct CheckpointName {
  std::string key;
  std::string path;
};

/// True if `path` is a checkpoint's own folder, whole or not: it holds manifest.json, or is called step-….
bool is_checkpoint(const std::string& path);

/// The folder with the checkpoints of a run: `path`/checkpoints if there is one, otherwise `path`.
std::string checkpoints_folder(const std::string& path);

/// The folder of the checkpoint that `name` names. Collective; the same result on every rank. `say` gets a line for
/// each checkpoint that is passed over, damaged or unreadable. If no whole one is left, throws ConfigError, or
/// SharedError if one of them cannot be read.
std::string locate_checkpoint(const CheckpointName& name, Communicator& world,
                              const std::function<void(const std::string&)>& say);

}  // namespace choir
