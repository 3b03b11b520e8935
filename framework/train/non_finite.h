// After a non-finite loss: which gradient is the first with a non-finite element.
#pragma once

#include <string>

#include "framework/train/trainer.h"

namespace choir {

/// Collective. "first bad gradient: blocks.3.attention.q.weight on rank 1", by the order of the parameters and then of
/// the ranks, or a sentence saying that all gradients are finite.
std::string describe_non_finite(Trainer&);

}  // namespace choir
