// What a step and an evaluation read, as the model's family wants it: a decoder the next tokens as targets, an encoder
// masked ones. An evaluation reads the same in training and in `choir evaluate`.
#pragma once

#include <cstdint>

#include "framework/data/sampler.h"
#include "framework/train/trainer.h"

namespace choir {

/// The samples of a step, of which the first is sample `first` of the run. Refers to the sampler.
ReadSample training_samples(const Config&, const Sampler&, std::int64_t first);

struct HeldOut {
  std::int64_t all = 0;      ///< held-out sequences there are
  std::int64_t samples = 0;  ///< of them are read, spread evenly, so that a few represent all
  ReadSample read;           ///< sample 0 to samples - 1; refers to the sampler
};

/// config.train.evaluate_sequences of them, or all if that is 0 or there are fewer. The masked tokens of a sequence are
/// the same in every evaluation of every run.
HeldOut held_out(const Config&, const Sampler&);

}  // namespace choir
