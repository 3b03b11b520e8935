// A step once more, with a look at everything between its parts: what went bad first?
//
// In the order of the computation: the weights, what each part gives forward, what each gives backward, the gradients.
// The first of them that is not finite is named. If all are finite, what is named is the largest: the tensor with the
// largest gradient, and the sample with the largest gradient at the output of the model's first part.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "framework/train/trainer.h"

namespace choir {

struct Replayed {
  StepResult result;
  std::string finding;  ///< the same on all ranks
};

/// Computes step `step` of `trainer`, which has the state before it, and its update if it is accepted. `sample_of`
/// returns the sample of the run that stands at a place in the batch. Collective.
Replayed replay(Trainer& trainer, std::int64_t step, const ReadSample& read,
                const std::function<std::int64_t(std::int64_t place)>& sample_of);

}  // namespace choir
