// A stopped rank of a mesh of several axes: the calls that all ranks keep name it, whichever axis the others wait on.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

struct Case {
  std::string name, words;
  int ranks, stopped;
};
void PrintTo(const Case& of, std::ostream* to) { *to << of.words; }

class StoppedRank : public ::testing::TestWithParam<Case> {};

TEST_P(StoppedRank, IsNamedWithItsCall) {
  const auto& [name, words, ranks, rank] = GetParam();
  const Workshop shop;
  const pid_t child = start(shop.train_command(ranks, "run", words + " train.steps=100000"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 5)) << read(shop.path("log"));
  const pid_t stopped = process_of_rank(child, rank);
  ASSERT_NE(stopped, 0) << read(shop.path("log"));
  // If it is stopped in a call that all have begun, nobody is behind: continue it, and stop it again.
  const std::string named = "rank " + std::to_string(rank) + " is ";
  std::string report;
  for (int tries = 0; tries < 100 && !report.starts_with(named); ++tries) {
    kill(stopped, SIGCONT);
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + tries));
    kill(stopped, SIGSTOP);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the others come to where they wait
    report = shop.choir("calls " + shop.path("run")).output;
  }
  EXPECT_TRUE(report.starts_with(named)) << report;
  EXPECT_NE(report.find("rank " + std::to_string(rank) + ":\n"), std::string::npos) << "its calls are listed";
  kill(-child, SIGKILL);
  kill(stopped, SIGKILL);
  wait_for(child);
}

// Each axis has two ranks, so that every rank has one peer on each.
const Case cases[] = {
    {"tensor_pipeline", "parallel.tensor=2 parallel.pipeline=2 parallel.micro_batch=1", 4, 3},
    {"tensor_context_pipeline", "parallel.tensor=2 parallel.context=2 parallel.pipeline=2 parallel.micro_batch=1", 8,
     5},
    {"data_context_pipeline",
     "parallel.zero=3 parallel.context=2 parallel.pipeline=2 parallel.micro_batch=1 parallel.context_kind=ring", 8, 2},
    {"shards_and_replicas", "parallel.zero=3 parallel.shard=2 parallel.micro_batch=1", 4, 1},
};
INSTANTIATE_TEST_SUITE_P(Layouts, StoppedRank, ::testing::ValuesIn(cases),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
