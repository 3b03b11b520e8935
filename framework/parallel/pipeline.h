// Schedules as data: a pipeline schedule is a pure function from (stage, stages, micro-batches) to a list of actions.
//
// One stage gives F0 B0 F1 B1 ...: gradient accumulation. There is no other training loop.
#pragma once

#include <cstdint>
#include <vector>

namespace choir {

struct Action {
  enum class Kind : std::uint8_t { forward, backward } kind;
  int micro_batch;
  bool operator==(const Action&) const = default;
};

/// One forward, one backward (Narayanan et al. 2021, arXiv 2104.04473): stage s runs stages - 1 - s forwards ahead,
/// then alternates, then drains. Every micro-batch once forward and once backward, both in ascending order.
std::vector<Action> one_forward_one_backward(int stage, int stages, int micro_batches);

/// The most micro-batches between their forward and their backward: the number of Saved slots that are needed.
int peak_in_flight(const std::vector<Action>& schedule);

}  // namespace choir
