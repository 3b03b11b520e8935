#include "framework/train/non_finite.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "framework/checkpoint/agreement.h"
#include "framework/ops/elementwise.h"

namespace choir {

/// The index of the first parameter whose gradient on this rank has a NaN or an infinity, or -1.
static std::int32_t first_bad_gradient(Trainer& trainer) {
  const auto& parameters = trainer.parameters().parameters();
  // In the order of the parameters; every element is updated by some rank, which has its complete gradient.
  for (const ParameterPart& part : parts_in(trainer.parameters(), trainer.shards().updated(), false)) {
    const Tensor elements = trainer.shards().at(part.flat(), &Bucket::gradient);
    std::vector<float> gradient(static_cast<std::size_t>(elements.count()));
    ops::download(trainer.runtime(), elements, gradient.data());
    for (const float value : gradient) {
      if (std::isfinite(value)) continue;
      const auto is_it = [&](const Parameter& p) { return &p == part.parameter; };
      return static_cast<std::int32_t>(std::find_if(parameters.begin(), parameters.end(), is_it) - parameters.begin());
    }
  }
  return -1;
}

std::string describe_non_finite(Trainer& trainer) {
  Communicator& host = *trainer.mesh().host;
  Agreement ranks(host, host.device().communicate());
  const auto count = static_cast<std::int32_t>(trainer.parameters().parameters().size());
  const std::int32_t mine = first_bad_gradient(trainer);
  // The largest of count - index is the smallest index; 0 if all are finite.
  const std::int32_t largest = ranks.largest(mine < 0 ? 0 : count - mine, "non-finite gradient");
  if (largest == 0) return "all gradients are finite";
  const std::int32_t index = count - largest;
  const std::int32_t size = ranks.size();
  const std::int32_t first_rank = size - ranks.largest(mine == index ? size - ranks.rank() : 0, "non-finite gradient");
  return "the first bad gradient is that of " +
         trainer.parameters().parameters()[static_cast<std::size_t>(index)].name + ", on rank " +
         std::to_string(first_rank);
}

}  // namespace choir
