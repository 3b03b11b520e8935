// Which checkpoint a user means.
#pragma once

#include <string>

#include "launch/command_line.h"

namespace choir {

/// A checkpoint's own folder as it is; of a run folder, or its checkpoints/, the newest whole one by its manifest and
/// file sizes, with a line on stderr for each that is passed over. Throws ConfigError where there is none.
std::string find_checkpoint(const std::string& path);

/// One rank's trainer for inference with the weights of a checkpoint, verified by all ranks together.
struct LoadedModel {
  std::unique_ptr<CallRing> ring;
  std::unique_ptr<Device> device;
  Mesh mesh;
  std::unique_ptr<class Trainer> trainer;
};
LoadedModel load_model(const class CheckpointReader&, const Config&, const MpiProcess&);

}  // namespace choir
