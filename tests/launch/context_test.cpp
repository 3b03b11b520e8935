// Context parallelism through the program: training, checkpoints in other layouts, verify, plan and what is refused.
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

struct Layout {
  int ranks;
  std::string words;
};

const Layout layouts[] = {
    {2, "parallel.context=2 parallel.context_kind=ring parallel.micro_batch=2"},
    {4, "parallel.context=4 parallel.context_kind=ring"},
    {2, "parallel.context=2 parallel.context_kind=gather train.recompute=block"},
    {4, "parallel.context=4 parallel.context_kind=gather"},
    {2, "parallel.context=2 parallel.context_kind=heads"},
    {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true"},
    {4, "parallel.context=2 parallel.zero=1 parallel.micro_batch=1"},
};

TEST(ContextParallelism, GivesTheLossesOfOneRank) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one").code, 0);
  const std::vector<double> losses = shop.metric("one", "loss"), bits = shop.metric("one", "bits_per_byte");
  const std::vector<double> norms = shop.metric("one", "gradient_norm");
  for (const auto& [ranks, words] : layouts) {
    SCOPED_TRACE(words);
    const Finished run = shop.train(ranks, "many", words);
    ASSERT_EQ(run.code, 0) << run.output;
    expect_near(shop.metric("many", "loss"), losses, relative);
    expect_near(shop.metric("many", "gradient_norm"), norms, relative);
    expect_near(shop.metric("many", "bits_per_byte"), bits, relative);
    shell("rm -r " + shop.path("many"));
  }
}

TEST(ContextParallelism, SaysHowKeysAndValuesMove) {
  const Workshop shop;
  const Finished run = shop.train(2, "run", "parallel.context=2 parallel.context_kind=gather train.steps=2");
  EXPECT_TRUE(contains(run, "tensor 1, context 2 (gather), data 1")) << run.output;
  const Finished plan =
      shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 2 parallel.context=2 parallel.context_kind=ring");
  EXPECT_EQ(plan.code, 0) << plan.output;
  EXPECT_TRUE(contains(plan, "keys and values of other context ranks: ring")) << plan.output;
  EXPECT_TRUE(contains(plan, "context    exchange")) << plan.output;
}

TEST(ContextParallelism, CheckpointsDoNotDependOnIt) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one", "train.steps=5").code, 0);
  ASSERT_EQ(shop.train(2, "two", "parallel.context=2 train.steps=5").code, 0);
  for (const char* verb : {"checkpoint verify ", "generate ", "evaluate "}) {
    const Finished finished = shop.choir(verb + shop.path("two"));
    ASSERT_EQ(finished.code, 0) << finished.output;
  }
  const Finished without = shop.train(1, "two", "--resume");
  ASSERT_EQ(without.code, 0) << without.output;
  const Finished with = shop.train(4, "one", "--resume parallel.context=2 parallel.tensor=2");
  ASSERT_EQ(with.code, 0) << with.output;
  ASSERT_EQ(shop.metric("one", "loss").size(), 10u);
  expect_near(shop.metric("two", "loss"), shop.metric("one", "loss"), relative);
}

TEST(ContextParallelism, ResumeInTheSameLayoutIsExact) {
  const Workshop shop;
  const std::string layout = "parallel.context=2 parallel.context_kind=ring ";
  ASSERT_EQ(shop.train(2, "whole", layout).code, 0);
  ASSERT_EQ(shop.train(2, "two", layout + "train.steps=10 checkpoint.every=5").code, 0);
  shell("rm -r " + shop.path("two") + "/checkpoints/step-00000010");
  const Finished resumed = shop.train(2, "two", layout + "--resume=5");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("two", "loss"), shop.metric("whole", "loss"));
}

TEST(ContextParallelism, VerifyProvesEachKind) {
  const Workshop shop;
  for (const std::string kind : {"ring", "gather", "heads"}) {
    const bool heads = kind == "heads";  // the tiny model has three
    const Finished verify =
        shop.mpirun(heads ? 2 : 4, "verify " + shop.path("tiny.yaml") + " parallel.context=2" +
                                       (heads ? "" : " parallel.tensor=2") + " parallel.context_kind=" + kind);
    EXPECT_EQ(verify.code, 0) << verify.output;
    EXPECT_TRUE(contains(verify, "context 2 (" + kind + ")")) << verify.output;
  }
}

TEST(ContextParallelism, MoreRanksThanPositionsOrHeadsAreRefused) {
  const Workshop shop;
  const Finished positions = shop.train(4, "run", "parallel.context=4 model.context=3");
  EXPECT_EQ(positions.code, 2) << positions.output;
  EXPECT_TRUE(contains(positions, "parallel.context = 4 is too many for model.context = 3")) << positions.output;
  EXPECT_TRUE(contains(positions, "set parallel.context to 3 or less")) << positions.output;
  const Finished heads = shop.train(6, "run", "parallel.context=6 parallel.context_kind=heads");
  EXPECT_EQ(heads.code, 2) << heads.output;
  EXPECT_TRUE(contains(heads, "parallel.context = 6 is too many for model.attention.heads = ")) << heads.output;
}

}  // namespace
}  // namespace choir::tests
