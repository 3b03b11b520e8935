// When checkpoints are written and how many are kept.
#pragma once

#include <cstdint>

namespace choir {

struct CheckpointConfig {
  std::int64_t every = 0;   ///< steps between checkpoints; 0: only at the end
  std::int64_t keep = 3;    ///< how many of the newest stay; 0: all

  bool operator==(const CheckpointConfig&) const = default;
};

}  // namespace choir
