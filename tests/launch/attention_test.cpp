// The options of attention through the program: training in layouts, checkpoints, verify, plan, generation, and what is
// refused.
#include <gtest/gtest.h>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string scores = "model.attention.position=alibi model.attention.soft_cap=3 model.attention.norm=true ";
const std::string documents = "model.attention.documents=separate ";
const std::string prefix_and_sinks = "model.attention.prefix=3 model.attention.sinks=true ";
const std::string linear = "model.attention.kind=linear model.attention.softmax_every=2 ";
const std::string delta = "model.attention.kind=delta ";

const std::vector<LaunchLayout> layouts = {
    {3, "parallel.tensor=3 parallel.sequence=true"},
    {2, "parallel.context=2 parallel.context_kind=ring parallel.micro_batch=2"},
    {2, "parallel.context=2 parallel.context_kind=heads"},
    {4, "parallel.context=2 parallel.context_kind=gather parallel.tensor=2 train.recompute=block"},
    {2, "parallel.pipeline=2 parallel.micro_batch=1"},
    {2, "parallel.zero=3 parallel.micro_batch=1"},
};

TEST(AttentionOptions, OfScoresGiveTheLossesOfOneRankInEveryLayout) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}}, scores);
}

TEST(AttentionOptions, SeparateDocumentsGiveTheLossesOfOneRankInEveryLayout) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}}, documents);
}

TEST(AttentionOptions, APrefixAndSinksGiveTheLossesOfOneRankInEveryLayout) {
  expect_metrics_of_one_rank(layouts, {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}}, prefix_and_sinks);
}

const std::string chosen_heads = "model.attention.routing.chosen=1 model.attention.routing.always=1 ";

TEST(AttentionOptions, ChosenHeadsGiveTheLossesOfOneRankInEveryLayout) {
  std::vector<LaunchLayout> gathering;
  for (const LaunchLayout& layout : layouts)
    if (layout.words.find("context=2 ") == std::string::npos || layout.words.find("gather") != std::string::npos)
      gathering.push_back(layout);
  expect_metrics_of_one_rank(
      gathering,
      {{"loss"}, {"gradient_norm"}, {"bits_per_byte"}, {"heads_dropped"}, {"head_balance_loss", 10 * relative}},
      chosen_heads);
}

TEST(AttentionOptions, AreInCheckpointsPlansAndGeneratedText) {
  const Workshop shop;
  for (const std::string& options : {scores, documents, prefix_and_sinks, chosen_heads, linear, delta}) {
    SCOPED_TRACE(options);
    const std::string run = "run" + std::to_string(options.size());
    ASSERT_EQ(shop.train(2, run, options + "parallel.tensor=2").code, 0);
    const std::vector<double> losses = shop.metric(run, "loss");
    shell("rm -r " + shop.path(run) + "/checkpoints/step-00000010");
    ASSERT_EQ(shop.train(2, run, options + "parallel.tensor=2 --resume=5").code, 0);
    EXPECT_EQ(shop.metric(run, "loss"), losses) << "resumed";
    const Finished text =
        shop.choir("generate " + shop.path(run) + " generate.prompt='The number' generate.tokens=100");
    EXPECT_EQ(text.code, 0) << text.output;
    const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 2 --device cuda " + options);
    EXPECT_EQ(plan.code, 0) << plan.output;
    const Finished verify =
        shop.mpirun(4, "verify " + shop.path("tiny.yaml") + " parallel.tensor=2 parallel.context=2 " + options);
    EXPECT_EQ(verify.code, 0) << verify.output;
    if (options != chosen_heads && options != linear && options != delta) continue;
    if (options == chosen_heads) {
      for (const double imbalance : shop.metric(run, "head_imbalance")) EXPECT_TRUE(1 < imbalance && imbalance < 2);
    }
    const Finished inspected = shop.choir("inspect " + shop.path(run));
    EXPECT_EQ(inspected.code, 0) << inspected.output;
  }
}

// The norm behind a head would enlarge rounding with the small epsilon of the others.
TEST(AttentionOptions, LinearAttentionGivesTheGradientsOfOneRankAtAHighRate) {
  expect_metrics_of_one_rank({layouts[0], layouts[1]}, {{"loss"}, {"gradient_norm"}},
                             linear + "optimizer.rate=0.01 train.steps=20 ");
}

TEST(AttentionOptions, LinearAttentionIsVerifiedWhateverTheEpsilonOfNorms) {
  const Workshop shop;
  for (const std::string& kind : {linear, delta}) {
    const Finished verify = shop.mpirun(3, "verify " CHOIR_SOURCE_DIR
                                           "/configs/quickstart.yaml parallel.tensor=3 train.threads=1 "
                                           "model.attention.heads=5 model.width=80 " +
                                               kind);
    EXPECT_EQ(verify.code, 0) << verify.output;
  }
}

TEST(AttentionOptions, APromptShorterThanThePrefixIsRefused) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", prefix_and_sinks).code, 0);
  const Finished text = shop.choir("generate " + shop.path("run") + " generate.prompt=ab");
  EXPECT_EQ(text.code, 2) << text.output;
  EXPECT_TRUE(contains(text, "generate.prompt has 2 tokens, and model.attention.prefix = 3")) << text.output;
  EXPECT_TRUE(contains(text, "give a longer prompt")) << text.output;
}

}  // namespace
}  // namespace choir::tests
