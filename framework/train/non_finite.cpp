#include "framework/train/non_finite.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "framework/checkpoint/agreement.h"
#include "framework/ops/elementwise.h"

namespace choir {

static bool is_finite(Trainer& trainer, const Tensor& gradient) {
  std::vector<float> values(static_cast<std::size_t>(gradient.count()));
  ops::download(trainer.runtime(), gradient.reshape({gradient.count()}), values.data());
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

/// The place in `model` of the first parameter whose gradient on this rank has a NaN or an infinity; the number of
/// parameters if there is none. Every element is updated by some rank, which has its complete gradient.
static std::int32_t first_bad_gradient(Trainer& trainer, const std::deque<Parameter>& model) {
  auto first = model.end();
  for (const ParameterPart& part : parts_in(trainer.parameters(), trainer.shards().updated(), false)) {
    if (is_finite(trainer, trainer.shards().at(part.flat(), &Bucket::gradient))) continue;
    const auto is_it = [&](const Parameter& p) { return p.name == part.parameter->name; };
    first = std::min(first, std::find_if(model.begin(), model.end(), is_it));
  }
  return static_cast<std::int32_t>(first - model.begin());
}

std::string describe_non_finite(Trainer& trainer) {
  Communicator& host = *trainer.mesh().host;
  Agreement ranks(host);
  const ParameterStore whole = all_parameters(trainer.config().model);
  const std::deque<Parameter>& model = whole.parameters();
  const auto count = static_cast<std::int32_t>(model.size());
  const std::int32_t mine = first_bad_gradient(trainer, model);
  // The largest of count - place is the smallest place; 0 if all are finite.
  const std::int32_t place = count - ranks.largest(count - mine, "non-finite gradient");
  if (place == count) return "all gradients are finite";
  const std::int32_t size = ranks.size();
  const std::int32_t first_rank = size - ranks.largest(mine == place ? size - ranks.rank() : 0, "non-finite gradient");
  return "the first bad gradient is that of " + model[static_cast<std::size_t>(place)].name + ", on rank " +
         std::to_string(first_rank);
}

}  // namespace choir
