// Models with experts through the program: training in layouts, checkpoints, verify, plan, text and what is refused.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string model = "model.experts.count=4 model.experts.chosen=2 model.experts.capacity=1.25 ";

const std::vector<LaunchLayout> layouts = {
    {2, "parallel.expert=2"},
    {4, "parallel.expert=4 parallel.micro_batch=1"},
    {4, "parallel.expert=2 parallel.zero=3 parallel.micro_batch=1"},
    {4, "parallel.expert=2 parallel.tensor=2 parallel.sequence=true"},
    {4, "parallel.expert=4 parallel.context=2 train.recompute=block"},
    {2, "parallel.tensor=2"},
    {2, "parallel.pipeline=2 parallel.micro_batch=1"},
};

TEST(Experts, GiveTheLossesOfOneRankInEveryLayout) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"bits_per_byte"}, {"dropped"}, {"balance_loss", 10 * relative}},
                             model);
}

const std::string biased = model + "model.experts.balance=bias model.experts.bias_step=0.05 ";

TEST(Experts, WithBiasesGiveTheLossesOfOneRank) {
  expect_metrics_of_one_rank({layouts[2], layouts[3], layouts[4], layouts[6]},
                             {{"loss"}, {"bits_per_byte"}, {"dropped"}}, biased);
}

TEST(Experts, BiasesLetFewerTokensDrop) {
  const Workshop shop;
  const auto dropped_at_the_end = [&](const std::string& folder, const std::string& balance) {
    const Finished run = shop.train(
        1, folder, model + "model.experts.balance=" + balance + " model.experts.bias_step=0.01 train.steps=60");
    EXPECT_EQ(run.code, 0) << run.output;
    const std::vector<double> dropped = shop.metric(folder, "dropped");
    return std::accumulate(dropped.end() - 20, dropped.end(), 0.0) / 20;
  };
  EXPECT_LT(dropped_at_the_end("bias", "bias"), 0.5 * dropped_at_the_end("none", "none"));
}

TEST(Experts, BiasesAreWeightsOfTheModel) {
  const Workshop shop;
  const Finished run = shop.train(1, "run", biased + "train.steps=2");
  ASSERT_EQ(run.code, 0) << run.output;
  const Finished other = shop.train(1, "run", model + "train.steps=4 --resume");
  EXPECT_EQ(other.code, 2) << other.output;
  EXPECT_TRUE(contains(other, "model.experts.balance = loss, but the run was started with bias")) << other.output;
  const Finished more = shop.train(1, "run", biased + "model.experts.bias_step=0.01 train.steps=4 --resume");
  EXPECT_EQ(more.code, 0) << more.output;
}

TEST(Experts, TheLiveLineSaysWhatIsDropped) {
  const Workshop shop;
  const Finished run = shop.train(1, "run", model + "train.steps=2");
  EXPECT_TRUE(contains(run, "% dropped")) << run.output;
}

TEST(Experts, CheckpointsDoNotDependOnTheLayout) {
  expect_checkpoints_to_cross({4, "parallel.expert=4 parallel.zero=1"}, "", {4, "parallel.expert=2 parallel.tensor=2"},
                              biased);
}

TEST(Experts, VerifyProvesALayoutAndCountsNearTies) {
  const Workshop shop;
  const Finished verify = shop.mpirun(4, "verify " + shop.path("tiny.yaml") + " " + model +
                                             "parallel.expert=2 parallel.tensor=2 parallel.sequence=true");
  EXPECT_EQ(verify.code, 0) << verify.output;
  EXPECT_TRUE(contains(verify, "expert 2")) << verify.output;
  EXPECT_TRUE(contains(verify, "f32 sgd choices of experts: ")) << verify.output;
  EXPECT_TRUE(contains(verify, " near ties")) << verify.output;
}

TEST(Experts, ThePlanHasTheirMessages) {
  const Workshop shop;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 4 " + model + "parallel.expert=2");
  EXPECT_EQ(plan.code, 0) << plan.output;
  EXPECT_TRUE(contains(plan, "expert 2: ")) << plan.output;
  EXPECT_TRUE(contains(plan, "expert     all_to_all")) << plan.output;
}

TEST(Experts, ManyDroppedTokensAreReported) {
  const Workshop shop;
  const Finished run = shop.train(1, "run", model + "model.experts.capacity=0.5 train.steps=2");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "% dropped (more than 10 %)")) << run.output;
  EXPECT_NE(read(shop.path("run") + "/metrics.jsonl").find("\"warning\""), std::string::npos);
  const Finished none = shop.train(1, "none", model + "model.experts.capacity=0 train.steps=2");
  ASSERT_EQ(none.code, 0) << none.output;
  EXPECT_EQ(shop.metric("none", "dropped"), (std::vector<double>{0, 0}));
}

TEST(Experts, LayoutsThatDoNotFitAreRefused) {
  const Workshop shop;
  const auto expect_refused = [&](int ranks, const std::string& words, const std::string& what,
                                  const std::string& fix) {
    const Finished run = shop.train(ranks, "run", words);
    EXPECT_EQ(run.code, 2) << run.output;
    EXPECT_TRUE(contains(run, what)) << run.output;
    EXPECT_TRUE(contains(run, fix)) << run.output;
  };
  expect_refused(2, "parallel.expert=2", "the model has no experts", "set parallel.expert to 1, or give");
  expect_refused(4, model + "parallel.expert=3", "does not divide the 4 ranks",
                 "set parallel.expert to one of 1, 2, 4");
  expect_refused(6, model + "parallel.expert=6 train.batch=6", "is too many for model.experts.count = 4",
                 "set parallel.expert to one of 1, 2, 3");
  expect_refused(1, model + "model.experts.chosen=5", "model.experts.chosen = 5 is more than model.experts.count = 4",
                 "set model.experts.chosen to 4 or less");
  expect_refused(1, model + "model.experts.every=9", "model.experts.every = 9 is more than model.layers",
                 "set model.experts.every to");
}

}  // namespace
}  // namespace choir::tests
