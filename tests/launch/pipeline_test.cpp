// Pipeline parallelism through the program: training, checkpoints in other layouts, verify, plan and what is refused.
#include <gtest/gtest.h>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

// The tiny model has four parts. Its batch is 4 sequences.
const std::vector<LaunchLayout> layouts = {
    {2, "parallel.pipeline=2 parallel.micro_batch=1"},
    {3, "parallel.pipeline=3 parallel.micro_batch=2 parallel.schedule=zero_bubble"},
    {2, "parallel.pipeline=2 parallel.micro_batch=1 parallel.schedule=interleaved train.recompute=block"},
    {4, "parallel.pipeline=2 parallel.micro_batch=1 parallel.schedule=v parallel.zero=1"},
    {4, "parallel.pipeline=2 parallel.tensor=2 parallel.sequence=true parallel.stages=[1,3]"},
};

TEST(Pipeline, AnyPipelineGivesTheLossesOfOneRank) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}});
}

TEST(Pipeline, SaysWhatEachStageHolds) {
  const Workshop shop;
  const Finished cut = shop.train(2, "cut", "parallel.pipeline=2 parallel.stages=[1,3] train.steps=2");
  EXPECT_TRUE(contains(cut, "tensor 1, pipeline 2 (1f1b), data 1")) << cut.output;
  EXPECT_TRUE(contains(cut, "stage 0: embedding\nstage 1: blocks.0 to head\n")) << cut.output;
}

TEST(Pipeline, CheckpointsDoNotDependOnIt) {
  expect_checkpoints_to_cross({2, "parallel.pipeline=2 parallel.schedule=v parallel.micro_batch=1"}, "",
                              {3, "parallel.pipeline=3"});
}

TEST(Pipeline, ResumeInTheSameLayoutIsExact) { expect_exact_resume({2, "parallel.pipeline=2 parallel.micro_batch=2"}); }

TEST(Pipeline, VerifyProvesItAndThePlanShowsIt) {
  const Workshop shop;
  const Finished verify = shop.mpirun(
      4, "verify " + shop.path("tiny.yaml") + " parallel.pipeline=2 parallel.tensor=2 parallel.micro_batch=1");
  EXPECT_EQ(verify.code, 0) << verify.output;
  EXPECT_TRUE(contains(verify, "comparisons on 4 ranks")) << verify.output;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") +
                                   " --ranks 2 parallel.pipeline=2 parallel.micro_batch=1 parallel.stages=[1,3]");
  EXPECT_EQ(plan.code, 0) << plan.output;
  EXPECT_TRUE(contains(plan, "stage 0: embedding")) << plan.output;
  EXPECT_TRUE(contains(plan, "pipeline   exchange")) << plan.output;
  EXPECT_TRUE(contains(plan, "bubble")) << plan.output;
}

// The stages hold different parameters, and different numbers of them.
TEST(Pipeline, TheFirstBadGradientIsNamedOverAllStages) {
  const Workshop shop;
  const Finished diverged =
      shop.train(3, "run",
                 "parallel.pipeline=3 parallel.stages=[1,1,2] optimizer.kind=sgd optimizer.rate=1e30 "
                 "optimizer.clip=0 optimizer.warmup=0");
  EXPECT_EQ(diverged.code, 3) << diverged.output;
  EXPECT_TRUE(contains(diverged, "the first bad gradient is that of embedding.token.weight, on rank 0"))
      << diverged.output;
}

TEST(Pipeline, MoreStagesThanPartsAreRefused) {
  const Workshop shop;
  const Finished refused = shop.train(5, "run", "parallel.pipeline=5");
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "parallel.pipeline = 5 is too many for a model of 4 parts")) << refused.output;
  EXPECT_TRUE(contains(refused, "set parallel.pipeline to 4 or less")) << refused.output;
}

}  // namespace
}  // namespace choir::tests
