// From the checkpoint that a user names to a model with its weights.
#pragma once

#include <string>

#include "framework/checkpoint/locate.h"
#include "launch/command_line.h"

namespace choir {

/// locate_checkpoint(), by all ranks of the job together. Rank 0 prints on stderr which checkpoints are passed over.
std::string find_checkpoint(const CheckpointName&, const MpiProcess&);
/// The same for a verb without MPI: this process reads all of it.
std::string find_checkpoint(const CheckpointName&);

/// One rank's trainer for inference with the weights of a checkpoint.
struct LoadedModel {
  std::unique_ptr<CallRing> ring;
  std::unique_ptr<Device> device;
  Mesh mesh;
  std::unique_ptr<class Trainer> trainer;
};
/// Call it with a checkpoint that find_checkpoint() has returned.
LoadedModel load_model(const class CheckpointReader&, const Config&, const MpiProcess&);

}  // namespace choir
