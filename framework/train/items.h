// Data that is a list of items, images or texts for example. The last share of them is held out for evaluation; a
// sample of the run is one of the others. Each epoch goes through these in an order of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

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

/// Data that is a list of items, each of which is one sample.
class ItemDataset : public Dataset {
 public:
  void split(const CheckpointReader* from) final;
  ReadSample training(std::int64_t first) const override;
  HeldOut held_out() const final;
  std::int64_t first_held_out() const final { return items_.first_held_out; }

 protected:
  /// `one` is what messages call an item: "image".
  ItemDataset(const Config& config, std::string one) : config_(config), one_(std::move(one)) {}

  virtual std::int64_t num_items() const = 0;
  /// Writes an item as ReadSample does.
  virtual std::int64_t read(std::int64_t item, const Sample&) const = 0;

  Config config_;
  Items items_;  // after split()

 private:
  std::string one_;
};

}  // namespace choir
