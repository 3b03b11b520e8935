// A rank that computes longer than the others is named, with its host, and no other.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

/// The ranks that were named.
std::vector<double> named(const Workshop& shop, const LaunchLayout& layout, const std::string& fault,
                          const std::string& words) {
  const Finished run = shop.mpirun(layout.ranks, FAULTY_TRAIN_BINARY,
                                   fault + " train " + shop.path("tiny.yaml") + " train.folder=" + shop.path("run") +
                                       " " + layout.words + " checkpoint.every=0 " + words);
  EXPECT_EQ(run.code, 0) << run.output;
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::vector<double> ranks = shop.metric("run", "slow_rank");
  for (const double rank : ranks)
    EXPECT_TRUE(contains(run, "rank " + std::to_string(static_cast<int>(rank)) + " on host " + host + " is "))
        << run.output;
  shell("rm -r " + shop.path("run"));
  return ranks;
}

// A sleep much longer than a step, so that no load of the machine hides it.
class StragglerInLayout : public ::testing::TestWithParam<std::pair<LaunchLayout, int>> {};

TEST_P(StragglerInLayout, ASlowRankIsNamedAndNoOther) {
  const Workshop shop;
  const auto& [layout, slow] = GetParam();
  const std::vector<double> ranks =
      named(shop, layout, "slow:" + std::to_string(slow) + ":100", "train.steps=40 train.straggler_every=1");
  EXPECT_FALSE(ranks.empty());
  for (const double rank : ranks) EXPECT_EQ(rank, slow);
}

INSTANTIATE_TEST_SUITE_P(Layouts, StragglerInLayout,
                         ::testing::ValuesIn(std::vector<std::pair<LaunchLayout, int>>{
                             {{2, ""}, 1},
                             {{4, "parallel.zero=2"}, 2},
                             {{4, "parallel.tensor=2"}, 3},
                             {{2, "parallel.tensor=2"}, 0},
                             {{2, "parallel.pipeline=2 parallel.micro_batch=1"}, 1}}));

TEST(Stragglers, AreNotLookedForIfTheUserSaysSo) {
  const Workshop shop;
  EXPECT_TRUE(named(shop, {2, ""}, "slow:1:100", "train.steps=20 train.straggler_every=0").empty());
}

}  // namespace
}  // namespace choir::tests
