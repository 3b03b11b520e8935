// What a step and an evaluation read of a text, as the model's family wants it: a decoder the next tokens as targets,
// an encoder masked ones.
#pragma once

#include <cstdint>

#include "framework/data/sampler.h"
#include "framework/train/dataset.h"

namespace choir {

/// Dataset::training(). Refers to the sampler.
ReadSample training_samples(const Config&, const Sampler&, std::int64_t first);

/// Dataset::held_out(). Refers to the sampler. The masked tokens of a sequence are the same in every evaluation of
/// every run.
HeldOut held_out_samples(const Config&, const Sampler&);

}  // namespace choir
