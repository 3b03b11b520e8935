// Where the arithmetic happens. No value here changes what is computed.
#pragma once

#include <cstdint>

namespace choir {

struct ParallelConfig {
  std::int64_t tensor = 1;       ///< ranks that share each layer: attention heads, feed-forward columns, vocabulary
  bool sequence = false;         ///< between layers, the tensor ranks split the rows instead of repeating them
  std::int64_t context = 1;      ///< ranks that share each sequence (not built yet: must be 1)
  std::int64_t pipeline = 1;     ///< ranks that share the layers (not built yet: must be 1)
  std::int64_t expert = 1;       ///< ranks that share the experts (not built yet: must be 1)
  std::int64_t zero = 0;         ///< 1: the optimizer state is split over the data ranks
  std::int64_t micro_batch = 0;  ///< sequences per forward on one rank; 0: all of a data rank's share at once

  bool operator==(const ParallelConfig&) const = default;
};

}  // namespace choir
