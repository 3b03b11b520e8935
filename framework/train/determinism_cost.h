// What train.attention.deterministic costs a step: before Blackwell, cuDNN's deterministic backward of attention keeps
// the scores in memory. Counted is what it keeps on Hopper.
#pragma once

#include <string>

#include "framework/train/plan.h"

namespace choir {

/// For the rank with the largest peak: the workspace of that backward, and the bytes of it that a step writes and
/// reads, with train.attention.deterministic = true and false. Empty if attention cannot be cuDNN's: on the CPU, in
/// f32, or with options that only Choir's kernels have.
std::string describe_determinism(const Plan&, const Config&);

}  // namespace choir
