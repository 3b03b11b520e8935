// Which held-out sequences an evaluation reads: the same in training and in `choir evaluate`.
#pragma once

#include <cstdint>

#include "framework/data/sampler.h"
#include "framework/train/trainer.h"

namespace choir {

struct HeldOut {
  std::int64_t all = 0;      ///< held-out sequences there are
  std::int64_t samples = 0;  ///< of them are read, spread evenly, so that a few represent all
  ReadSample read;           ///< sample 0 to samples - 1; refers to the sampler
};

/// `wanted` sequences, or all of them if it is 0 or there are fewer.
HeldOut held_out(const Sampler&, std::int64_t wanted);

}  // namespace choir
