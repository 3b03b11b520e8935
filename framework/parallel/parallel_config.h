// Where the arithmetic happens. No value here changes what is computed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include "framework/comm/context_kind.h"
#include "framework/parallel/schedule.h"

namespace choir {

/// The product of positive numbers; the largest number if it is beyond that.
constexpr std::int64_t saturating_product(std::initializer_list<std::int64_t> factors) {
  std::int64_t result = 1;
  for (const std::int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result)) return std::numeric_limits<std::int64_t>::max();
  return result;
}

struct ParallelConfig {
  std::int64_t tensor = 1;         ///< ranks that share each layer: attention heads, feed-forward columns, vocabulary
  bool sequence = false;           ///< between layers, the tensor ranks split the rows instead of repeating them
  std::int64_t tensor_chunks = 0;  ///< pieces of a product that the tensor ranks add up; 0: as the device needs
  std::int64_t context = 1;        ///< ranks that share each sequence
  ContextKind context_kind = ContextKind::automatic;
  std::int64_t pipeline = 1;  ///< ranks that share the layers: stages
  PipelineSchedule schedule = PipelineSchedule::one_forward_one_backward;
  std::int64_t chunks = 0;             ///< stretches of the model on each stage; 0: two if interleaved or v, else one
  std::vector<std::int64_t> stages{};  ///< parts in each stretch; empty: cut by cost
  std::int64_t expert = 1;             ///< ranks that share the experts; divides context * data
  std::int64_t zero = 0;         ///< the data ranks split 1: masters and moments, 2: also gradients, 3: also values
  std::int64_t shard = 0;        ///< of the ranks that zero splits over, how many hold one copy; 0: all
  std::int64_t micro_batch = 0;  ///< sequences per forward on one rank; 0: all of a data rank's share at once

  std::int64_t ranks_of_a_copy() const {  ///< that together hold the model once
    return saturating_product({tensor, context, pipeline});
  }
  std::int64_t pieces() const {  ///< stretches into which the model is cut
    return saturating_product({pipeline, chunks_of_stage()});
  }
  std::int64_t chunks_of_stage() const {
    if (chunks > 0) return chunks;
    return schedule == PipelineSchedule::interleaved || schedule == PipelineSchedule::v_shaped ? 2 : 1;
  }
  bool operator==(const ParallelConfig&) const = default;
};

}  // namespace choir
