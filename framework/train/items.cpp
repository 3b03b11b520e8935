#include "framework/train/items.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "framework/core/quantity.h"
#include "framework/data/sampler.h"
#include "framework/train/snapshot.h"

namespace choir {

std::int64_t Items::of_sample(std::int64_t sample) const {
  return permute(sample % first_held_out, first_held_out, seed, sample / first_held_out);
}

HeldOut Items::held_out(std::int64_t wanted, std::function<std::int64_t(std::int64_t, const Sample&)> read) const {
  const std::int64_t all = count - first_held_out, samples = wanted > 0 ? std::min(wanted, all) : all;
  const auto of = [first = first_held_out, all, samples, read = std::move(read)](std::int64_t index, const Sample& s) {
    return read(first + index * all / samples, s);
  };
  return {.all = all, .samples = samples, .read = of};
}

std::string Items::describe() const {
  return fmt::format("{} for training, {} held out", first_held_out, count - first_held_out);
}

Items split_items(const Config& config, const std::string& one, std::int64_t count,
                  std::optional<std::int64_t> first_held_out) {
  const double share = std::ceil(config.data.held_out * static_cast<double>(count));
  const std::int64_t first = first_held_out.value_or(count - static_cast<std::int64_t>(share));
  if (first < 1)
    throw ConfigError(Problem{.what = fmt::format("data.path = {} has no {} for training", config.data.path, one),
                              .why = fmt::format("data.held_out = {} keeps {} of {} for evaluation",
                                                 config.data.held_out, count - first, quantity(count, one)),
                              .fix = fmt::format("prepare more {}s, or set a smaller data.held_out", one)});
  return {.count = count, .first_held_out = first, .seed = config.train.seed};
}

void ItemDataset::split(const CheckpointReader* from) {
  items_ = split_items(config_, one_, num_items(),
                       from && is_that_of(*from) ? position_of(*from).first_held_out : std::nullopt);
}

ReadSample ItemDataset::training(std::int64_t first) const {
  return
      [this, first](std::int64_t index, const Sample& sample) { return read(items_.of_sample(first + index), sample); };
}

HeldOut ItemDataset::held_out() const {
  return items_.held_out(config_.train.evaluate_sequences,
                         [this](std::int64_t item, const Sample& sample) { return read(item, sample); });
}

}  // namespace choir
