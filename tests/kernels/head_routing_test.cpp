// Where the rows of heads are, against the definition: by a search of all rows, slots and keys.
#include "kernels/head_routing.h"

#include <gtest/gtest.h>

#include "tests/kernels/head_routing_case.h"

namespace choir::kernels {
namespace {

using tests::HeadRoutingCase;

TEST(HeadRows, AreThoseThatChoseTheHeadInTheOrderOfPositions) {
  for (const HeadRoutingCase& c : tests::head_routing_cases) {
    SCOPED_TRACE(c.name);
    const tests::HeadChoices choices(c);
    const std::vector<DocumentRange> documents = tests::two_documents(c);
    const std::int64_t rows = c.map.sequences * c.map.positions(), slots = tests::slots_of(c), keys = c.map.length;
    std::vector<float> gates(static_cast<std::size_t>(rows * c.held), 77);
    std::vector<std::int32_t> of_rows(gates.size(), 77),
        of_slots(static_cast<std::size_t>(c.map.sequences * slots * c.held), 77);
    std::vector<DocumentRange> ranges(static_cast<std::size_t>(c.map.sequences * c.held * (slots + keys)), {77, 77});
    HeadRows<float> args = tests::head_rows_of<float>(c);
    args.weights = choices.weights.data();
    args.rows_of_routed = choices.rows_of_routed.data();
    args.gates = gates.data();
    args.slots = of_rows.data();
    args.rows_of_slots = of_slots.data();
    args.ranges = ranges.data();
    args.documents = {.separate = c.documents, .ranges = documents.data(), .length = keys};
    compute_head_rows(Cpu{3}, args);

    std::int64_t dropped = 0;
    for (std::int64_t s = 0; s < c.map.sequences; ++s)
      for (std::int64_t h = 0; h < c.held; ++h) {
        const std::int64_t head = c.first_head + h;
        const DocumentRange* of_head = ranges.data() + (s * c.held + h) * (slots + keys);
        std::vector<std::int64_t> positions;  // of the head
        for (std::int64_t i = 0; i < c.map.positions(); ++i) {
          const std::int64_t row = c.map.row_at(s, i);
          ASSERT_EQ(c.map.place(row).sequence, s);
          float gate = head < c.always ? 1 : 0;
          for (std::int64_t j = 0; j < c.chosen; ++j)
            if (choices.choices[row * c.chosen + j] == head - c.always)
              gate = static_cast<float>(c.chosen) * choices.weights[row * c.chosen + j];
          const bool has_room = head < c.always || std::ssize(positions) < c.capacity;
          if (gate != 0 && !has_room) ++dropped;
          if (!has_room) gate = 0;
          ASSERT_EQ(gates[row * c.held + h], gate);
          if (gate == 0) {
            ASSERT_EQ(of_rows[row * c.held + h], -1);
            continue;
          }
          const std::int64_t slot = (s * slots + std::ssize(positions)) * c.held + h;
          ASSERT_EQ(of_rows[row * c.held + h], slot);
          ASSERT_EQ(of_slots[slot], row * c.held + h);
          positions.push_back(c.map.position(row));
        }
        const auto sees = [&](std::int64_t query, std::int64_t key) {
          const bool in_document = !c.documents || (query < keys / 3) == (key < keys / 3);
          return key <= query && (c.window == 0 || query - key < c.window) && in_document;
        };
        for (std::int64_t i = 0; i < slots; ++i) {
          const bool is_used = i < std::ssize(positions);
          ASSERT_EQ(of_slots[(s * slots + i) * c.held + h] < 0, !is_used);
          const DocumentRange before = of_head[std::max<std::int64_t>(0, i - 1)];
          ASSERT_TRUE(before.begin <= of_head[i].begin && before.end <= of_head[i].end);
          for (std::int64_t key = 0; key < keys; ++key) {
            const bool seen = is_used && sees(positions[static_cast<std::size_t>(i)], key);
            ASSERT_EQ(of_head[i].begin <= slots + key && slots + key < of_head[i].end, seen) << i << ", " << key;
            ASSERT_EQ(of_head[slots + key].begin <= i && i < of_head[slots + key].end, seen) << i << ", " << key;
          }
        }
      }
    EXPECT_GT(dropped + (c.held == 2 ? 1 : 0), 0) << "nothing is dropped: the case shows less than it should";
  }
}

TEST(HeadWeights, HaveTheGradientsOfTheGatesHeldHere) {
  const std::vector<std::int32_t> choices = {0, 2, 3, 1, 2, 0};
  const std::vector<double> dgates = {1, 2, 3, 4, 5, 6};
  std::vector<double> dweights(6, 77);
  head_weight_gradient(Cpu{},
                       HeadWeightGradient<double>{choices.data(), dgates.data(), dweights.data(), 3, 2, 1, 2, 2});
  EXPECT_EQ(dweights, (std::vector<double>{0, 4, 0, 6, 12, 0}));  // heads 2 and 3 are choices 1 and 2
}

TEST(HeadCounts, AreTheSlotsThatRowsHave) {
  const std::vector<std::int32_t> slots = {4, 7, -1, -1, -1, -1, 0, 1, 2};
  std::vector<double> sums = {10, 20, 30};
  add_head_counts(Cpu{}, HeadCounts{slots.data(), sums.data(), 3, 3});
  EXPECT_EQ(sums, (std::vector<double>{12, 20, 33}));
}

}  // namespace
}  // namespace choir::kernels
