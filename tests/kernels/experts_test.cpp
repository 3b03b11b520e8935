// Routing against plain formulas: the choices of each row, the first rows by position in the slots, and the way back.
#include "kernels/experts.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

/// The keys of a row in descending order, equal ones by their index.
std::vector<std::int32_t> best_of(const float* logits, std::int64_t experts, std::int64_t chosen) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  order.resize(static_cast<std::size_t>(chosen));
  return order;
}

struct Case {
  std::int64_t rows, experts, chosen;
};
const Case cases[] = {{1, 1, 1}, {7, 4, 2}, {33, 5, 5}, {40, 70, 32}, {300, 64, 6}};

TEST(Route, ChoosesTheHighestScoresAndTheLowerIndexOfEqualOnes) {
  for (const Case& c : cases)
    for (const auto score : {ExpertScore::softmax, ExpertScore::sigmoid})
      on_every_target([&](Cpu cpu) {
        std::vector<float> logits = random_values<float>(c.rows * c.experts, 1, 2);
        for (float& x : logits) x = std::round(x * 2) / 2;  // many equal ones
        std::vector<std::int32_t> choices(static_cast<std::size_t>(c.rows * c.chosen));
        std::vector<float> weights(choices.size());
        route(cpu, Route<float>{logits.data(), nullptr, nullptr, choices.data(), weights.data(), c.rows, c.experts,
                                c.chosen, score});
        for (std::int64_t row = 0; row < c.rows; ++row) {
          const float* of_row = logits.data() + row * c.experts;
          const auto expected = best_of(of_row, c.experts, c.chosen);
          double sum = 0;
          const auto exact = [&](std::int32_t e) {
            return score == ExpertScore::softmax ? std::exp(double{of_row[e]}) : 1 / (1 + std::exp(-double{of_row[e]}));
          };
          for (const std::int32_t e : expected) sum += exact(e);
          for (std::int64_t j = 0; j < c.chosen; ++j) {
            const auto at = static_cast<std::size_t>(row * c.chosen + j);
            ASSERT_EQ(choices[at], expected[static_cast<std::size_t>(j)]) << row;
            ASSERT_NEAR(weights[at], exact(choices[at]) / sum, 30 * half_ulp<float>());
          }
        }
      });
}

TEST(Route, ABiasChangesTheChoiceAndNotTheWeights) {
  const std::vector<float> logits = {1, 0.5f, 0, -1}, bias = {-1, 0, 0, 1};
  std::int32_t choices[2] = {};
  float weights[2] = {};
  for (const auto score : {ExpertScore::softmax, ExpertScore::sigmoid}) {
    route(Cpu{}, Route<float>{logits.data(), bias.data(), nullptr, choices, weights, 1, 4, 2, score});
    EXPECT_EQ(choices[0], 3);
    EXPECT_EQ(choices[1], 1);
    EXPECT_NEAR(weights[0] + weights[1], 1, 1e-6);
    EXPECT_LT(weights[0], weights[1]);
  }
}

TEST(Route, OfNaNChoosesSomethingAndHasWeightsThatSayNaN) {
  std::vector<float> logits(5, std::numeric_limits<float>::quiet_NaN());
  std::int32_t choices[3] = {};
  float weights[3] = {};
  route(Cpu{}, Route<float>{logits.data(), nullptr, nullptr, choices, weights, 1, 5, 3, ExpertScore::softmax});
  for (int j = 0; j < 3; ++j) {
    EXPECT_TRUE(0 <= choices[j] && choices[j] < 5);
    EXPECT_TRUE(std::isnan(weights[j]));
  }
}

/// Slots of sequences in two runs, of a rank of `ranks` whose choices are all known.
TEST(AssignSlots, TheFirstRowsByPositionAreKeptOnAllContextRanksTogether) {
  constexpr std::int64_t length = 37, sequences = 3, experts = 5, chosen = 2, capacity = 9;
  const auto choice = [](std::int64_t s, std::int64_t position, std::int64_t j) {
    const auto first = static_cast<std::int32_t>((position * position + s) % 7 % experts);
    return j == 0 ? first : static_cast<std::int32_t>((first + 1 + position % 3) % experts);
  };
  for (const std::int64_t ranks : {1, 2, 3}) {
    struct Rank {
      RowMap map;
      std::vector<std::int32_t> choices, counts, slots, rows_of_slots;
    };
    std::vector<Rank> all;
    std::vector<std::int32_t> gathered;
    for (std::int64_t r = 0; r < ranks; ++r) {
      const auto begin = [&](std::int64_t slice) { return slice * length / (2 * ranks); };
      Rank& rank = all.emplace_back();
      rank.map = {0, sequences, length, {{begin(r), begin(r + 1)}, {begin(2 * ranks - 1 - r), begin(2 * ranks - r)}}};
      for (std::int64_t row = 0; row < sequences * rank.map.positions(); ++row)
        for (std::int64_t j = 0; j < chosen; ++j)
          rank.choices.push_back(choice(rank.map.place(row).sequence, rank.map.position(row), j));
      rank.counts.resize(sequences * 2 * experts);
      count_choices(Cpu{3}, CountChoices{rank.choices.data(), rank.counts.data(), experts, chosen, rank.map});
      gathered.insert(gathered.end(), rank.counts.begin(), rank.counts.end());
    }
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> kept;  // by sequence and expert
    std::int64_t dropped = 0;
    for (std::int64_t r = 0; r < ranks; ++r) {
      Rank& rank = all[static_cast<std::size_t>(r)];
      const ExpertPlaces places{experts, 2};
      const std::int64_t per_sequence = std::min(capacity, rank.map.positions());
      rank.slots.assign(rank.choices.size(), 12345);
      rank.rows_of_slots.assign(places.count() * sequences * per_sequence, 12345);
      assign_slots(Cpu{3},
                   AssignSlots{rank.choices.data(), gathered.data(), nullptr, rank.slots.data(),
                               rank.rows_of_slots.data(), chosen, capacity, per_sequence, places, rank.map, ranks, r});
      std::int64_t used = 0;
      for (const std::int32_t row : rank.rows_of_slots) used += row >= 0 ? 1 : 0;
      for (std::size_t i = 0; i < rank.choices.size(); ++i) {
        const auto [s, position] = rank.map.place(static_cast<std::int64_t>(i) / chosen);
        const std::int32_t e = rank.choices[i];
        std::int64_t earlier = 0;
        for (std::int64_t before = 0; before < position; ++before)
          for (std::int64_t j = 0; j < chosen; ++j) earlier += choice(s, before, j) == e ? 1 : 0;
        ASSERT_EQ(rank.slots[i] >= 0, earlier < capacity) << "rank " << r << ", position " << position;
        if (rank.slots[i] < 0) {
          ++dropped;
          continue;
        }
        ++kept[{s, e}];
        --used;
        ASSERT_EQ(rank.rows_of_slots[static_cast<std::size_t>(rank.slots[i])], static_cast<std::int32_t>(i));
        ASSERT_EQ(places.expert(rank.slots[i] / (sequences * per_sequence)), e);
        ASSERT_EQ(rank.slots[i] / per_sequence % sequences, s);
      }
      EXPECT_EQ(used, 0) << "a slot without a row is not empty";
    }
    EXPECT_GT(dropped, 0);
    for (const auto& [where, count] : kept) EXPECT_LE(count, capacity);
  }
}

TEST(AssignSlots, GoOnWithTheCountsOfTheCache) {
  constexpr std::int64_t experts = 3, capacity = 2;
  const std::vector<std::int32_t> choices = {0, 1, 0, 2, 0, 1, 1, 1};
  const ExpertPlaces places{experts, 1};
  std::vector<std::int32_t> cached = {99, 99, 99}, slots(choices.size()), whole(choices.size());
  const auto assign = [&](std::int64_t begin, std::int64_t end, std::int32_t* cache, std::int32_t* to) {
    const RowMap map{0, 1, end, {{begin, end}, {0, 0}}};
    std::vector<std::int32_t> counts(2 * experts), rows_of_slots(experts * capacity);
    count_choices(Cpu{}, CountChoices{choices.data() + begin, counts.data(), experts, 1, map});
    assign_slots(Cpu{}, AssignSlots{choices.data() + begin, counts.data(), cache, to, rows_of_slots.data(), 1, capacity,
                                    capacity, places, map});
  };
  const auto count = static_cast<std::int64_t>(choices.size());
  assign(0, count, nullptr, whole.data());
  for (std::int64_t i = 0; i < count; ++i) {  // the first one starts from zero, whatever is in the cache
    assign(i, i + 1, cached.data(), slots.data() + i);
    EXPECT_EQ(slots[static_cast<std::size_t>(i)] >= 0, whole[static_cast<std::size_t>(i)] >= 0) << i;
  }
  EXPECT_EQ(cached, (std::vector<std::int32_t>{3, 4, 1}));
}

TEST(AddImbalance, IsZeroInTheMeanAndExact) {
  constexpr std::int64_t experts = 5, sequences = 3;
  std::vector<std::int32_t> counts(sequences * 2 * experts);
  std::int64_t choices = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) choices += counts[i] = static_cast<std::int32_t>(i * i % 11);
  std::vector<float> gradient(experts, 3);
  add_imbalance(Cpu{}, AddImbalance<float>{counts.data(), gradient.data(), sequences, experts, choices});
  for (std::size_t e = 0; e < gradient.size(); ++e) {
    std::int64_t of_expert = 0;
    for (std::size_t i = e; i < counts.size(); i += experts) of_expert += counts[i];
    EXPECT_EQ(gradient[e], static_cast<float>(3 + experts * of_expert - choices));
  }
  EXPECT_EQ(std::accumulate(gradient.begin(), gradient.end(), 0.0f), 3 * experts);
}

TEST(ExpertPlaces, HoldEveryExpertOnce) {
  for (std::int64_t experts = 1; experts < 12; ++experts)
    for (std::int64_t ranks = 1; ranks <= experts; ++ranks) {
      const ExpertPlaces places{experts, ranks};
      std::vector<std::int64_t> found;
      for (std::int64_t place = 0; place < places.count(); ++place)
        if (places.expert(place) >= 0) {
          found.push_back(places.expert(place));
          const std::int64_t rank = place / places.most();
          EXPECT_TRUE(places.first(rank) <= found.back() && found.back() < places.first(rank) + places.held(rank));
        }
      std::vector<std::int64_t> all(static_cast<std::size_t>(experts));
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(found, all);
    }
}

template <class T>
class SlotsTest : public ::testing::Test {};
TYPED_TEST_SUITE(SlotsTest, ElementTypes);

TYPED_TEST(SlotsTest, GatherAndCombineFollowTheSlots) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const auto& [rows, width, chosen] : {Case{1, 1, 1}, Case{5, 17, 2}, Case{40, 129, 3}})
    on_every_target([&](Cpu cpu) {
      const std::int64_t slots = 2 * rows * chosen;
      std::vector<std::int32_t> of_rows(static_cast<std::size_t>(rows * chosen)), rows_of_slots(slots, -1);
      for (std::int64_t i = 0; i < rows * chosen; ++i) {
        of_rows[i] = i % 5 == 3 ? -1 : static_cast<std::int32_t>((i * 2 + 1) % slots);
        if (of_rows[i] >= 0) rows_of_slots[of_rows[i]] = static_cast<std::int32_t>(i);
      }
      const std::vector<T> x = random_values<T>(rows * width, 1), z = random_values<T>(slots * width, 2);
      const std::vector<A> weights = random_values<A>(rows * chosen, 3);
      std::vector<T> y(slots * width, T(A(7)));
      gather_slots(cpu, GatherSlots<T>{x.data(), weights.data(), rows_of_slots.data(), y.data(), slots, width, chosen});
      for (std::int64_t i = 0; i < slots * width; ++i) {
        const std::int64_t from = rows_of_slots[i / width];
        const double expected = from < 0 ? 0 : double(weights[from]) * double(x[from / chosen * width + i % width]);
        ASSERT_NEAR(double(y[i]), expected, 4 * half_ulp<T>() * std::abs(expected)) << i;
      }
      std::vector<T> sum(rows * width);
      combine_slots(cpu, CombineSlots<T>{z.data(), weights.data(), of_rows.data(), sum.data(), rows, width, chosen});
      std::vector<A> dweights(rows * chosen, A(7));
      combine_weight_gradient(
          cpu, CombineWeightGradient<T>{x.data(), z.data(), of_rows.data(), dweights.data(), rows, width, chosen});
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t d = 0; d < width; ++d) {
          Result exact;
          for (std::int64_t j = 0; j < chosen; ++j)
            if (const std::int64_t slot = of_rows[row * chosen + j]; slot >= 0)
              exact.add(double(weights[row * chosen + j]) * double(z[slot * width + d]));
          ASSERT_NEAR(double(sum[row * width + d]), exact.value,
                      2 * half_ulp<T>() * std::abs(exact.value) + 16 * half_ulp<A>() * exact.magnitude);
        }
        for (std::int64_t j = 0; j < chosen; ++j) {
          Result exact;
          const std::int64_t slot = of_rows[row * chosen + j];
          for (std::int64_t d = 0; d < width && slot >= 0; ++d)
            exact.add(double(x[row * width + d]) * double(z[slot * width + d]));
          ASSERT_NEAR(double(dweights[row * chosen + j]), exact.value,
                      (4 * std::sqrt(static_cast<double>(width)) + 8) * half_ulp<A>() * exact.magnitude);
        }
      }
    });
}

}  // namespace
}  // namespace choir::kernels::tests
