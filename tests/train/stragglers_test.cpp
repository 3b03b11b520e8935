#include "framework/train/stragglers.h"

#include <gtest/gtest.h>

#include <random>

namespace choir::tests {
namespace {

/// Data ranks that need 10 ms, with some noise.
std::vector<RankTimes> data_ranks(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<RankTimes> ranks;
  for (int i = 0; i < count; ++i) {
    const double noise = 1 + 0.04 * static_cast<double>(random() % 1000) / 1000;
    ranks.push_back({.at = {.data = i}, .compute = 0.01 * noise, .compute_at_least = 0.0099 * noise});
  }
  return ranks;
}

TEST(Stragglers, ASlowDataRankIsNamedAndNoOther) {
  for (unsigned seed = 0; seed < 100; ++seed)
    for (const int count : {2, 3, 8}) {
      std::vector<double> lowest;
      std::vector<RankTimes> ranks = data_ranks(count, seed);
      EXPECT_TRUE(find_slow_ranks(ranks, lowest).empty());
      RankTimes& slow = ranks[seed % static_cast<unsigned>(count)];
      slow.compute *= 1.2;
      slow.compute_at_least *= 1.2;
      const std::vector<SlowRank> found = find_slow_ranks(ranks, lowest);
      ASSERT_EQ(found.size(), 1u) << count;
      EXPECT_EQ(found[0].rank, static_cast<int>(seed % static_cast<unsigned>(count)));
      EXPECT_NEAR(found[0].ratio, 1.2, 0.06);
    }
}

TEST(Stragglers, AFewSlowStepsAreNot) {
  std::vector<RankTimes> ranks = data_ranks(4, 1);
  ranks[2].compute *= 2;  // in half of its steps
  std::vector<double> lowest;
  EXPECT_TRUE(find_slow_ranks(ranks, lowest).empty());
}

TEST(Stragglers, ARankThatHardlyLengthensTheStepIsNot) {
  // Rank 1 is the slow one; rank 2 needs 1 ms more than the others, in a step of 110 ms.
  std::vector<RankTimes> ranks = data_ranks(4, 1);
  for (RankTimes& rank : ranks) rank.waiting = 0.1;
  ranks[1].compute = ranks[1].compute_at_least = 0.11;
  ranks[1].waiting = 0.001;
  ranks[2].compute = ranks[2].compute_at_least = 0.0115;
  std::vector<double> lowest;
  const std::vector<SlowRank> found = find_slow_ranks(ranks, lowest);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].rank, 1);
}

TEST(Stragglers, RanksAtOtherPlacesAreComparedByWhatTheyHaveToDo) {
  // Tensor rank 1 has twice the work; a stage takes longer than its operations say.
  std::vector<RankTimes> ranks = {{.at = {}, .compute = 0.01, .compute_at_least = 0.01, .counted = 1},
                                  {.at = {.tensor = 1}, .compute = 0.02, .compute_at_least = 0.02, .counted = 2},
                                  {.at = {.tensor = 2}, .compute = 0.013, .compute_at_least = 0.013, .counted = 1}};
  std::vector<double> lowest;
  EXPECT_TRUE(find_slow_ranks(ranks, lowest).empty()) << "nothing is known of the ranks yet";
  EXPECT_TRUE(find_slow_ranks(ranks, lowest).empty()) << "rank 2 is as it was";
  ranks[1].compute = ranks[1].compute_at_least = 0.028;
  const std::vector<SlowRank> found = find_slow_ranks(ranks, lowest);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].rank, 1);
  ranks[1].compute = ranks[1].compute_at_least = 0.04;
  std::vector<double> nothing;
  EXPECT_EQ(find_slow_ranks(ranks, nothing).size(), 1u) << "so much that it is clear at once";
}

TEST(Stragglers, OneRankIsComparedWithNobody) {
  std::vector<double> lowest;
  EXPECT_TRUE(find_slow_ranks(data_ranks(1, 1), lowest).empty());
}

}  // namespace
}  // namespace choir::tests
