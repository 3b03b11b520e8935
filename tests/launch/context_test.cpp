// Context parallelism through the program: training, checkpoints in other layouts, verify, plan and what is refused.
#include <gtest/gtest.h>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::vector<LaunchLayout> layouts = {
    {2, "parallel.context=2 parallel.context_kind=ring parallel.micro_batch=2"},
    {4, "parallel.context=4 parallel.context_kind=ring"},
    {2, "parallel.context=2 parallel.context_kind=gather train.recompute=block"},
    {4, "parallel.context=4 parallel.context_kind=gather"},
    {2, "parallel.context=2 parallel.context_kind=heads"},
    {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true"},
    {4, "parallel.context=2 parallel.zero=1 parallel.micro_batch=1"},
};

TEST(ContextParallelism, GivesTheLossesOfOneRank) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}});
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
  expect_checkpoints_to_cross({2, "parallel.context=2"}, "", {4, "parallel.context=2 parallel.tensor=2"});
}

TEST(ContextParallelism, ResumeInTheSameLayoutIsExact) {
  expect_exact_resume({2, "parallel.context=2 parallel.context_kind=ring"});
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
