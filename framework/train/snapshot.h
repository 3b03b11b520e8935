// Between a trainer and its checkpoints: which pieces this rank writes, and which it reads.
//
// Tensors of a checkpoint: every parameter under its name (the f32 master), and for each of the optimizer's state
// arrays "optimizer.<array>.<parameter>". Nothing in them depends on the layout.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint.h"
#include "framework/checkpoint/reader.h"
#include "framework/data/token_file.h"
#include "framework/train/trainer.h"

namespace choir {

/// Pieces of flat arrays in host memory. On the CPU they point into the arrays themselves, on a GPU into copies.
struct Snapshot {
  struct Copy {
    Tensor device;
    std::vector<float> host;
  };
  std::vector<Piece> pieces;
  std::deque<Copy> copies;  // a deque: pieces point into it while it grows
};

/// What this rank writes: over all ranks, every element exactly once.
Snapshot owned_snapshot(Trainer&);

/// What describes the run besides tensors: configuration, step, what it was trained on, and the tokenizer itself.
State run_state(const Config&, std::int64_t step, const TokenFile&);

/// The tokenizer and configuration (with "key=value" overrides) of a checkpoint. Throw ConfigError where the checkpoint
/// has none.
Tokenizer tokenizer_of(const CheckpointReader&);
Config config_of(const CheckpointReader&, const std::vector<std::string>& overrides = {});

/// Weights, whatever layout wrote them. Throws ConfigError naming the fields in which the models differ.
void load_weights(Trainer&, const CheckpointReader&);
/// Weights and optimizer state, to go on with the step after reader.step().
void load_all(Trainer&, const CheckpointReader&);

/// What keeps `now` from resuming a run that was started as `then`, in the words of the configuration. The layout,
/// evaluation, logging, checkpoints and the number of steps may differ.
std::vector<Problem> check_resume(const Config& then, const Config& now);

}  // namespace choir
