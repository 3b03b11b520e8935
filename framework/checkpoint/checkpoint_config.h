// When checkpoints are written and how many are kept.
#pragma once

#include <cstdint>

namespace choir {

struct CheckpointConfig {
  std::int64_t every = 0;       ///< steps between checkpoints; 0: only at the end
  std::int64_t keep = 3;        ///< how many of the newest stay; 0: all
  std::int64_t milestones = 0;  ///< checkpoints of multiples of this step stay as well; 0: none
  double timeout = 1800;        ///< seconds that one rank's write may take; then the job ends; 0: no limit
  bool best = true;             ///< the one with the lowest held-out loss stays as well, and `best` links to it

  bool operator==(const CheckpointConfig&) const = default;
};

}  // namespace choir
