#include "framework/train/non_finite.h"

#include <cmath>
#include <vector>

#include "framework/checkpoint/agreement.h"
#include "framework/ops/elementwise.h"

namespace choir {

/// The index of the first parameter whose gradient on this rank has a NaN or an infinity, or -1.
static std::int32_t first_bad_gradient(Trainer& trainer) {
  std::int32_t index = 0;
  for (const Parameter& p : trainer.parameters().parameters()) {
    std::vector<float> gradient(static_cast<std::size_t>(p.held.count()));
    ops::download(trainer.runtime(), p.gradient().reshape({p.held.count()}), gradient.data());
    for (const float value : gradient)
      if (!std::isfinite(value)) return index;
    ++index;
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
