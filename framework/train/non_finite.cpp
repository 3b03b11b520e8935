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
/// parameters if there is none. This rank may hold some of them only.
static std::int32_t first_bad_gradient(Trainer& trainer, const std::deque<Parameter>& model) {
  std::int32_t place = 0;
  for (const Parameter& p : model) {
    const Parameter* held = trainer.parameters().find(p.name);
    if (held != nullptr && !is_finite(trainer, held->gradient())) return place;
    ++place;
  }
  return place;
}

std::string describe_non_finite(Trainer& trainer) {
  Communicator& host = *trainer.mesh().host;
  Agreement ranks(host, host.device().communicate());
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
