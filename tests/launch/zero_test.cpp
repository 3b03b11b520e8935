// ZeRO stages 2 and 3 through the program: losses, held-out losses, checkpoints in other layouts, verify and plan.
#include <gtest/gtest.h>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

// The tiny model's batch is 4 sequences. Four data ranks have one or two of 5 held-out sequences.
const std::vector<LaunchLayout> layouts = {
    {2, "parallel.zero=2 parallel.micro_batch=1"},
    {4, "parallel.zero=2"},
    {2, "parallel.zero=3 parallel.micro_batch=1 train.recompute=block"},
    {4, "parallel.zero=3 parallel.micro_batch=1"},
    {4, "parallel.zero=3 parallel.tensor=2 parallel.sequence=true train.streams=threaded"},
    {4, "parallel.zero=3 parallel.pipeline=2 parallel.micro_batch=1 parallel.schedule=v"},
    {4, "parallel.zero=3 parallel.shard=2 parallel.micro_batch=1"},
};

TEST(Zero, AnyStageGivesTheLossesOfOneRank) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}}, "train.evaluate_sequences=5");
}

TEST(Zero, CheckpointsDoNotDependOnIt) {
  expect_checkpoints_to_cross({4, "parallel.zero=3 parallel.micro_batch=1"}, "parallel.zero=0 parallel.micro_batch=0",
                              {2, "parallel.zero=3 parallel.micro_batch=1"});
}

TEST(Zero, ResumeInTheSameLayoutIsExact) {
  expect_exact_resume({2,
                       "parallel.zero=3 parallel.micro_batch=1 train.precision=bf16 train.emulate_bf16=true "
                       "optimizer.moments=bf16"});
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
