#include "framework/train/held_out.h"

#include <algorithm>

namespace choir {

HeldOut held_out(const Sampler& sampler, std::int64_t wanted) {
  const std::int64_t all = sampler.num_evaluation_sequences();
  const std::int64_t samples = wanted > 0 ? std::min(wanted, all) : all;
  const auto read = [&sampler, all, samples](std::int64_t index, std::span<std::int32_t> inputs,
                                             std::span<std::int32_t> targets) {
    sampler.evaluation_sequence(index * all / samples, inputs, targets);
    return sampler.target_bytes(targets);
  };
  return {.all = all, .samples = samples, .read = read};
}

}  // namespace choir
