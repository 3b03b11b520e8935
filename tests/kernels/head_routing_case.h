// A layer whose tokens choose heads, for tests on the CPU and on a GPU: what a rank of it computes.
#pragma once

#include <random>
#include <vector>

#include "kernels/head_routing.h"

namespace choir::kernels::tests {

struct HeadRoutingCase {
  const char* name;
  std::int64_t heads, always, chosen, capacity;  // of the layer
  std::int64_t first_head, held;
  RowMap map;
  std::int64_t window;
  bool documents;
};
inline const HeadRoutingCase head_routing_cases[] = {
    {"all heads here", 5, 1, 2, 9, 0, 5, whole_sequences(2, 37), 0, false},
    {"routed heads of a rank, two runs of a window", 8, 2, 3, 11, 3, 3, {0, 3, 40, {{5, 15}, {25, 35}}}, 4, false},
    {"heads that are always on, documents", 4, 3, 1, 20, 0, 2, whole_sequences(2, 30), 0, true},
    {"the next tokens of a text", 4, 1, 2, 3, 0, 4, {0, 1, 50, {{42, 50}, {0, 0}}}, 0, false},
};

/// Choices at random, of which some heads get many.
struct HeadChoices {
  std::vector<std::int32_t> choices, rows_of_routed;
  std::vector<float> weights;
  std::int64_t routed_per_sequence;

  explicit HeadChoices(const HeadRoutingCase& c) {
    std::mt19937 random(static_cast<unsigned>(c.heads));
    const std::int64_t rows = c.map.sequences * c.map.positions(), routed = c.heads - c.always;
    routed_per_sequence = std::min(c.capacity, c.map.positions());
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto first = static_cast<std::int64_t>(random()) % routed % 2;
      for (std::int64_t j = 0; j < c.chosen; ++j) {
        choices.push_back(static_cast<std::int32_t>((first + j) % routed));
        weights.push_back(static_cast<float>(random() % 100 + 1) / 128);
      }
    }
    std::vector<std::int32_t> counts(static_cast<std::size_t>(c.map.sequences * 2 * routed)), slots(choices.size());
    rows_of_routed.resize(static_cast<std::size_t>(routed * c.map.sequences * routed_per_sequence));
    count_choices(Cpu{}, CountChoices{choices.data(), counts.data(), routed, c.chosen, c.map});
    assign_slots(Cpu{}, AssignSlots{choices.data(),
                                    counts.data(),
                                    nullptr,
                                    slots.data(),
                                    rows_of_routed.data(),
                                    c.chosen,
                                    c.capacity,
                                    routed_per_sequence,
                                    {routed, 1},
                                    c.map});
  }
};

inline std::int64_t slots_of(const HeadRoutingCase& c) {
  return c.first_head < c.always ? c.map.positions() : std::min(c.capacity, c.map.positions());
}
/// Two documents of each sequence.
inline std::vector<DocumentRange> two_documents(const HeadRoutingCase& c) {
  std::vector<DocumentRange> ranges;
  const auto length = static_cast<std::int32_t>(c.map.length), border = length / 3;
  for (std::int64_t i = 0; c.documents && i < c.map.sequences * c.map.length; ++i)
    ranges.push_back(i % c.map.length < border ? DocumentRange{0, border} : DocumentRange{border, length});
  return ranges;
}

/// Without its operands.
template <class A>
HeadRows<A> head_rows_of(const HeadRoutingCase& c) {
  return {.chosen = c.chosen,
          .always = c.always,
          .first_head = c.first_head,
          .heads = c.held,
          .routed_per_sequence = std::min(c.capacity, c.map.positions()),
          .per_sequence = slots_of(c),
          .keys = c.map.length,
          .map = c.map,
          .band = causal_band(c.map.length, c.map.length, c.window)};
}

}  // namespace choir::kernels::tests
