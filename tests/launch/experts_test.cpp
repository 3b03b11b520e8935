// Models with experts through the program: training in layouts, checkpoints, verify, plan, text and what is refused.
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

const std::string model = "model.experts.count=4 model.experts.chosen=2 model.experts.capacity=1.25 ";

struct Layout {
  int ranks;
  std::string words;
};

const Layout layouts[] = {
    {2, "parallel.expert=2"},
    {4, "parallel.expert=4 parallel.micro_batch=1"},
    {4, "parallel.expert=2 parallel.zero=3 parallel.micro_batch=1"},
    {4, "parallel.expert=2 parallel.tensor=2 parallel.sequence=true"},
    {4, "parallel.expert=4 parallel.context=2 train.recompute=block"},
    {2, "parallel.tensor=2"},
    {2, "parallel.pipeline=2 parallel.micro_batch=1"},
};

TEST(Experts, GiveTheLossesOfOneRankInEveryLayout) {
  const Workshop shop;
  const Finished alone = shop.train(1, "one", model);
  ASSERT_EQ(alone.code, 0) << alone.output;
  const std::vector<double> losses = shop.metric("one", "loss"), bits = shop.metric("one", "bits_per_byte");
  const std::vector<double> dropped = shop.metric("one", "dropped"), balance = shop.metric("one", "balance_loss");
  ASSERT_EQ(dropped.size(), losses.size());
  EXPECT_TRUE(contains(alone, "% dropped")) << alone.output;
  for (const auto& [ranks, words] : layouts) {
    SCOPED_TRACE(words);
    const Finished run = shop.train(ranks, "many", model + words);
    ASSERT_EQ(run.code, 0) << run.output;
    expect_near(shop.metric("many", "loss"), losses, relative);
    expect_near(shop.metric("many", "bits_per_byte"), bits, relative);
    expect_near(shop.metric("many", "balance_loss"), balance, 10 * relative);
    shell("rm -r " + shop.path("many"));
  }
}

TEST(Experts, CheckpointsDoNotDependOnTheLayout) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one", model + "train.steps=5").code, 0);
  ASSERT_EQ(shop.train(4, "four", model + "parallel.expert=4 parallel.zero=1 train.steps=5").code, 0);
  ASSERT_EQ(shop.choir("checkpoint verify " + shop.path("four")).code, 0);
  const Finished text = shop.choir("generate " + shop.path("four"));
  EXPECT_EQ(text.code, 0) << text.output;
  const Finished evaluated = shop.choir("evaluate " + shop.path("four"));
  EXPECT_EQ(evaluated.code, 0) << evaluated.output;
  const Finished without = shop.train(1, "four", model + "--resume");
  ASSERT_EQ(without.code, 0) << without.output;
  const Finished with = shop.train(4, "one", model + "--resume parallel.expert=2 parallel.tensor=2");
  ASSERT_EQ(with.code, 0) << with.output;
  expect_near(shop.metric("four", "loss"), shop.metric("one", "loss"), relative);
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
