// Data that is a list of items, images or texts for example. The last share of them is held out for evaluation; a
// sample of the run is one of the others. Each epoch goes through these in an order of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "framework/config/config.h"
#include "framework/train/dataset.h"

namespace choir {

struct Items {
  std::int64_t count = 0, first_held_out = 0;
  std::uint64_t seed = 0;  ///< train.seed

  /// The item that is sample `sample` of the run.
  std::int64_t of_sample(std::int64_t sample) const;
  /// The held-out items, or `wanted` of them if that is not 0, each read by `read(item, sample)`.
  HeldOut held_out(std::int64_t wanted, std::function<std::int64_t(std::int64_t, const Sample&)> read) const;
  /// "80 for training, 20 held out"
  std::string describe() const;
};

/// Holds out the share data.held_out of `count` items, or those from `first_held_out` on, as the run did that is
/// continued. Throws ConfigError if none is left for training; `one` is what the message calls one: "image".
Items split_items(const Config&, const std::string& one, std::int64_t count,
                  std::optional<std::int64_t> first_held_out);

}  // namespace choir
