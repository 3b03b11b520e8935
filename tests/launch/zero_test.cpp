// ZeRO stages 2 and 3 through the program: losses, held-out losses, checkpoints in other layouts, verify and plan.
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

struct Layout {
  int ranks;
  std::string words;
};

// The tiny model's batch is 4 sequences. Four data ranks have one or two of 5 held-out sequences.
const Layout layouts[] = {
    {2, "parallel.zero=2 parallel.micro_batch=1"},
    {4, "parallel.zero=2"},
    {2, "parallel.zero=3 parallel.micro_batch=1 train.recompute=block"},
    {4, "parallel.zero=3 parallel.micro_batch=1"},
    {4, "parallel.zero=3 parallel.tensor=2 parallel.sequence=true train.streams=threaded"},
    {4, "parallel.zero=3 parallel.pipeline=2 parallel.micro_batch=1 parallel.schedule=v"},
    {4, "parallel.zero=3 parallel.shard=2 parallel.micro_batch=1"},
};

const std::string held_out = "train.evaluate_sequences=5 ";

TEST(Zero, AnyStageGivesTheLossesOfOneRank) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one", held_out).code, 0);
  for (const auto& [ranks, words] : layouts) {
    SCOPED_TRACE(words);
    const Finished run = shop.train(ranks, "many", held_out + words);
    ASSERT_EQ(run.code, 0) << run.output;
    for (const char* metric : {"loss", "gradient_norm", "bits_per_byte"})
      expect_near(shop.metric("many", metric), shop.metric("one", metric), relative);
    shell("rm -r " + shop.path("many"));
  }
}

TEST(Zero, CheckpointsDoNotDependOnIt) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one", "train.steps=5").code, 0);
  ASSERT_EQ(shop.train(4, "four", "train.steps=5 parallel.zero=3 parallel.micro_batch=1").code, 0);
  for (const char* verb : {"checkpoint verify ", "generate ", "evaluate "}) {
    const Finished finished = shop.choir(verb + shop.path("four"));
    ASSERT_EQ(finished.code, 0) << finished.output;
  }
  // A checkpoint of stage 3 goes on with one rank, and the other way round.
  const Finished without = shop.train(1, "four", "--resume parallel.zero=0 parallel.micro_batch=0");
  ASSERT_EQ(without.code, 0) << without.output;
  const Finished with = shop.train(2, "one", "--resume parallel.zero=3 parallel.micro_batch=1");
  ASSERT_EQ(with.code, 0) << with.output;
  ASSERT_EQ(shop.metric("one", "loss").size(), 10u);
  expect_near(shop.metric("four", "loss"), shop.metric("one", "loss"), relative);
}

TEST(Zero, ResumeInTheSameLayoutIsExact) {
  const Workshop shop;
  const std::string layout = "parallel.zero=3 parallel.micro_batch=1 train.precision=bf16 train.emulate_bf16=true ";
  ASSERT_EQ(shop.train(2, "whole", layout).code, 0);
  ASSERT_EQ(shop.train(2, "two", layout + "train.steps=10 checkpoint.every=5").code, 0);
  shell("rm -r " + shop.path("two") + "/checkpoints/step-00000010");
  const Finished resumed = shop.train(2, "two", layout + "--resume=5");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("two", "loss"), shop.metric("whole", "loss"));
}

TEST(Zero, VerifyProvesItAndThePlanShowsIt) {
  const Workshop shop;
  const Finished verify =
      shop.mpirun(4, "verify " + shop.path("tiny.yaml") + " parallel.zero=3 parallel.tensor=2 parallel.micro_batch=1");
  EXPECT_EQ(verify.code, 0) << verify.output;
  EXPECT_TRUE(contains(verify, "zero 3")) << verify.output;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 2 parallel.zero=3");
  EXPECT_EQ(plan.code, 0) << plan.output;
  EXPECT_TRUE(contains(plan, "data       reduce_scatter")) << plan.output;
  EXPECT_TRUE(contains(plan, "data       all_gather")) << plan.output;
  const Finished replicas =
      shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 4 parallel.zero=3 parallel.shard=2");
  EXPECT_EQ(replicas.code, 0) << replicas.output;
  EXPECT_TRUE(contains(replicas, "shard      reduce_scatter")) << replicas.output;
  EXPECT_TRUE(contains(replicas, "replica    all_reduce")) << replicas.output;
}

}  // namespace
}  // namespace choir::tests
