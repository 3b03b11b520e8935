// Between a trainer and its checkpoints: which pieces this rank writes, and which it reads.
//
// Tensors of a checkpoint: every parameter under its name (the f32 master), and for each of the optimizer's state
// arrays "optimizer.<array>.<parameter>". Nothing in them depends on the layout.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint.h"
#include "framework/checkpoint/reader.h"
#include "framework/data/left_out.h"
#include "framework/data/token_file.h"
#include "framework/train/dataset.h"
#include "framework/train/trainer.h"

namespace choir {

/// Pieces of tensors in host memory. On the CPU they point into the tensors themselves if these are f32, else into
/// copies.
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

/// How far a run has come, besides its tensors.
struct RunPosition {
  std::int64_t step = 0;
  std::int64_t samples = 0;                    ///< read so far: the place in the data, for any batch size
  std::int64_t optimizer_origin = 0;           ///< Optimizer::state_origin()
  std::optional<std::int64_t> first_held_out;  ///< Dataset::first_held_out(); not in older checkpoints
  std::optional<double> held_out_loss;         ///< if it was evaluated after this step
  std::string run;                             ///< RunRecord::id
  LeftOut left_out;                            ///< samples that are not read
  std::vector<SpikePoint> spike_window;        ///< Trainer::spike_window()
};
/// The state of the run besides tensors: configuration, position, and Dataset::add_to().
State run_state(const Config&, const RunPosition&, const Dataset&);
RunPosition position_of(const CheckpointReader&);

/// Adds to a state what identifies the tokens of a file, and its tokenizer.
void add_tokens(const TokenFile&, State&);

/// The tokenizer of a checkpoint, and its configuration with "key=value" overrides. A relative data.path that is not
/// overridden is looked for in the folder in which the run was started. Throw ConfigError if the checkpoint has none.
Tokenizer tokenizer_of(const CheckpointReader&);
Config config_of(const CheckpointReader&, const std::vector<std::string>& overrides = {});

/// Weights, whatever layout wrote them. A classifier takes those of an encoder: returns the name of the tensor that
/// keeps its start values, or "". Throws ConfigError naming the fields in which the models differ.
std::string load_weights(Trainer&, const CheckpointReader&);
/// Weights and optimizer state, to continue with the step after reader.step(). Optimizer state that is not in the
/// checkpoint starts at zero; returns the names of such arrays, or "".
std::string load_all(Trainer&, const CheckpointReader&);

/// Why `now` cannot continue a run that was configured as `then`: another model, other data or another seed.
std::vector<Problem> check_resume(const Config& then, const Config& now);
/// What else differs and changes the numbers, one line each: "optimizer.rate = 1e-4, was 6e-4". If the learning rates
/// after step `step` are other ones, the last line has the rate of that step, of the next one, and what this would have
/// been.
std::vector<std::string> describe_changes(const Config& then, const Config& now, std::int64_t step);

}  // namespace choir
