// Encoders through the program: training in layouts, checkpoints, verify, plan, evaluation, and what is refused.
#include <gtest/gtest.h>

#include "framework/data/token_file.h"
#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string model = "model.family=encoder model.vocabulary=258 ";  // 257 bytes, and the mask token

TEST(Encoder, GivesTheLossesOfOneRankInEveryLayout) {
  expect_metrics_of_one_rank(
      {
          {2, "parallel.micro_batch=1"},
          {2, "parallel.zero=3 parallel.micro_batch=1"},
          {3, "parallel.tensor=3 parallel.sequence=true"},
          {2, "parallel.pipeline=2 parallel.micro_batch=1"},
          {2, "parallel.context=2 parallel.context_kind=ring train.recompute=block"},
          {2, "parallel.context=2 parallel.context_kind=gather"},
          {2, "parallel.context=2 parallel.context_kind=heads"},
          {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true parallel.micro_batch=2"},
      },
      {{"loss"}, {"gradient_norm"}, {"held_out_loss"}, {"bits_per_byte"}}, model);
}

TEST(Encoder, WithAWindowOrLinearAttentionGivesTheLossesOfOneRank) {
  for (const char* attention :
       {"model.attention.window=4 ", "model.attention.kind=linear ", "model.attention.kind=delta "})
    expect_metrics_of_one_rank({{2, "parallel.tensor=2"}, {2, "parallel.context=2 parallel.context_kind=ring"}},
                               {{"loss"}, {"bits_per_byte"}}, model + attention);
}

TEST(Encoder, TrainsThroughLaunchTrainAndGoesOnInAnotherLayout) {
  const Workshop shop;
  const std::string start = "CHOIR=" CHOIR_BINARY " " CHOIR_SOURCE_DIR "/launch/train " + shop.path("tiny.yaml") + " " +
                            model + "train.folder=" + shop.path("run") + " ";
  const Finished first = shell(start + "train.steps=10 parallel.tensor=3");
  ASSERT_EQ(first.code, 0) << first.output;
  EXPECT_TRUE(contains(first, "bits per byte after step 10")) << first.output;
  EXPECT_FALSE(contains(first, "A sample:")) << first.output;
  EXPECT_FALSE(contains(first, "more text")) << first.output;
  shell("rm -r " + shop.path("run") + "/checkpoints/step-00000010");
  const Finished second = shell(start + "parallel.context=2 --resume=5");
  ASSERT_EQ(second.code, 0) << second.output;
  const Finished whole = shop.train(1, "whole", model);
  ASSERT_EQ(whole.code, 0) << whole.output;
  expect_near(shop.metric("run", "loss"), shop.metric("whole", "loss"), relative);
  expect_near(shop.metric("run", "held_out_loss"), shop.metric("whole", "held_out_loss"), relative);
}

TEST(Encoder, ItsCheckpointsAreWholeAndResumeExactly) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "run", model + "parallel.zero=1").code, 0);
  for (const std::string verb : {"checkpoint verify ", "checkpoint show ", "checkpoint list ", "evaluate "}) {
    const Finished finished = shop.choir(verb + shop.path("run"));
    EXPECT_EQ(finished.code, 0) << finished.output;
  }
  const std::vector<double> losses = shop.metric("run", "loss");
  shell("rm -r " + shop.path("run") + "/checkpoints/step-00000010");
  const Finished resumed = shop.train(2, "run", model + "parallel.zero=1 --resume=5");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("run", "loss"), losses);
}

// Which held-out tokens are masked depends neither on the seed nor on the step nor on the layout.
TEST(Encoder, IsEvaluatedOnTheSameTokensEachTime) {
  const Workshop shop;
  const Finished run = shop.train(1, "run", model + "train.evaluate_every=5 train.evaluate_sequences=0");
  ASSERT_EQ(run.code, 0) << run.output;
  const Finished other = shop.train(1, "other", model + "train.seed=3 train.evaluate_sequences=0");
  ASSERT_EQ(other.code, 0) << other.output;
  const std::vector<double> tokens = shop.metric("run", "held_out_tokens");
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_EQ(shop.metric("other", "held_out_tokens"), std::vector<double>{tokens[0]});
  const Finished one = shop.choir("evaluate --json " + shop.path("run"));
  EXPECT_TRUE(contains(one, "\"tokens\":" + std::to_string(static_cast<long>(tokens[0])))) << one.output;
  const Finished two = shop.mpirun(2, "evaluate " + shop.path("run") + " parallel.context=2");
  EXPECT_TRUE(contains(two, "over " + std::to_string(static_cast<long>(tokens[0])) + " held-out tokens")) << two.output;
}

TEST(Encoder, VerifyProvesTensorRanksAndAProduct) {
  const Workshop shop;
  for (const LaunchLayout& layout :
       {LaunchLayout{2, "parallel.tensor=2"},
        LaunchLayout{4, "parallel.tensor=2 parallel.context=2 parallel.sequence=true model.attention.window=4"}}) {
    const Finished verify = shop.mpirun(layout.ranks, "verify " + shop.path("tiny.yaml") + " " + model + layout.words);
    EXPECT_EQ(verify.code, 0) << verify.output;
    EXPECT_TRUE(contains(verify, "the layout computes what one rank computes")) << verify.output;
  }
}

TEST(Encoder, ThePlanCountsAllPairsOfTokens) {
  const Workshop shop;
  const auto attention = [&](const std::string& words) {
    const Finished plan = shop.choir("plan --json --ranks 2 " + shop.path("tiny.yaml") + " parallel.tensor=2 " + words);
    EXPECT_EQ(plan.code, 0) << plan.output;
    const std::string key = "\"model_flops\": ";
    const std::size_t at = plan.output.find(key);
    return at == std::string::npos ? 0.0 : std::stod(plan.output.substr(at + key.size()));
  };
  // 16 positions: 256 pairs, of which a causal mask leaves 136. Three heads 8 wide, two layers, four sequences.
  const double per_pair = 3 * 4 * 3 * 8 * 2 * 4;
  EXPECT_EQ(attention(model) - attention("model.vocabulary=258"), (256 - 136) * per_pair);
}

TEST(Encoder, GeneratesNoText) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", model + "train.steps=2").code, 0);
  const Finished text = shop.choir("generate " + shop.path("run"));
  EXPECT_EQ(text.code, 2) << text.output;
  EXPECT_TRUE(contains(text, "has model.family = encoder")) << text.output;
  EXPECT_TRUE(contains(text, "it does not continue a text")) << text.output;
}

TEST(Encoder, NeedsAnIdForItsMaskToken) {
  const Workshop shop;
  const Finished bytes = shop.train(1, "run", "model.family=encoder");
  EXPECT_EQ(bytes.code, 2) << bytes.output;
  EXPECT_TRUE(contains(bytes, "model.vocabulary = 257 leaves no id for the mask token beside the 257 tokens"))
      << bytes.output;
  EXPECT_TRUE(contains(bytes, "set model.vocabulary to 258 or more")) << bytes.output;

  const std::string trained = "data.tokenizer.kind=sentencepiece data.path=" + shop.path("pieces.h5") + " ";
  const std::string prepare = "prepare " + shop.path("tiny.yaml") + " " + shop.path("text-*") + " " + trained;
  const Finished encoder = shop.choir(prepare + "model.family=encoder model.vocabulary=300");
  ASSERT_EQ(encoder.code, 0) << encoder.output;
  EXPECT_EQ(TokenFile(shop.path("pieces.h5")).tokenizer().vocabulary(), 299);
  const Finished fits = shop.train(1, "run", trained + "model.family=encoder model.vocabulary=300 train.steps=2");
  EXPECT_EQ(fits.code, 0) << fits.output;

  ASSERT_EQ(shop.choir(prepare + "model.vocabulary=300").code, 0);  // as a decoder uses them all
  const Finished full = shop.train(1, "full", trained + "model.family=encoder model.vocabulary=300 train.steps=2");
  EXPECT_EQ(full.code, 2) << full.output;
  EXPECT_TRUE(contains(full, "leaves no id for the mask token beside the 300 tokens of data.path = ")) << full.output;
  EXPECT_TRUE(contains(full, "set model.vocabulary to 301 or more, or choir prepare with fewer tokens")) << full.output;
}

TEST(Encoder, KeepsItsMaskedTokensWhenItGoesOn) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", model + "train.steps=2").code, 0);
  const Finished other = shop.train(1, "run", model + "data.masked.share=0.3 --resume");
  EXPECT_EQ(other.code, 2) << other.output;
  EXPECT_TRUE(contains(other, "data.masked.share = 0.3, but the run was started with 0.15")) << other.output;
  const Finished decoder = shop.train(1, "run", "model.vocabulary=258 --resume");
  EXPECT_EQ(decoder.code, 2) << decoder.output;
  EXPECT_TRUE(contains(decoder, "model.family = decoder, but the run was started with encoder")) << decoder.output;
}

}  // namespace
}  // namespace choir::tests
