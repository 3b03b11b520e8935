// Steps whose loss or gradient norm is not finite, or a spike: nothing changes, and the run stops, goes on or goes
// back. `choir replay` names what went bad.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "framework/data/sampler.h"
#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

/// Without what depends on the number of a step, so that losses show the state and the batch only.
const std::string plain = "model.dropout=0 optimizer.schedule=constant optimizer.warmup=0 ";
/// A fault of step 4 that is gone in the next one, and one that stays in the weights.
const std::string passing = "passing:4:blocks.1.attention.q.weight:9:inf";

Finished faulty_train(const Workshop& shop, int ranks, const std::string& fault, const std::string& run,
                      const std::string& words) {
  return shop.mpirun(ranks, FAULTY_TRAIN_BINARY,
                     fault + " train " + shop.path("tiny.yaml") + " train.folder=" + shop.path(run) + " " + words);
}

std::string bad_step(const Workshop& shop, const std::string& run, int step) {
  return shop.path(run) + "/bad-step-" + std::to_string(step);
}

const std::vector<LaunchLayout> layouts = {
    {1, ""},
    {2, "parallel.tensor=2 parallel.sequence=true"},
    {2, "parallel.micro_batch=1"},
    {2, "parallel.zero=1"},
    {2, "parallel.zero=3 parallel.micro_batch=1"},
    {2, "parallel.pipeline=2 parallel.micro_batch=2"},
    {2, "parallel.context=2"},
};

// The step after the one that is left out has the loss that this step has in a run that goes back over it and reads the
// next batch instead: the state is the same.
class SpikeInLayout : public ::testing::TestWithParam<LaunchLayout> {};

TEST_P(SpikeInLayout, AStepThatIsNotFiniteChangesNothing) {
  const LaunchLayout& layout = GetParam();
  const Workshop shop;
  const std::string words = plain + "checkpoint.every=1 train.spike.action=";
  const Finished one_rank = faulty_train(shop, 1, passing, "alone", words + "skip train.steps=8");
  ASSERT_EQ(one_rank.code, 0) << one_rank.output;
  const Finished skip = faulty_train(shop, layout.ranks, passing, "skip", words + "skip train.steps=8 " + layout.words);
  ASSERT_EQ(skip.code, 0) << skip.output;
  EXPECT_TRUE(contains(skip, "step 4: the loss is nan, the gradient norm nan; the first bad gradient is that of "))
      << skip.output;
  EXPECT_TRUE(contains(skip, "going on with the next batch; samples 12-15 are left out (1 step in a row)"))
      << skip.output;
  EXPECT_EQ(shop.metric("skip", "rejected_step"), std::vector<double>{4});
  const Finished rewind =
      faulty_train(shop, layout.ranks, passing, "rewind", words + "rewind train.steps=7 " + layout.words);
  ASSERT_EQ(rewind.code, 0) << rewind.output;
  EXPECT_TRUE(contains(rewind, "went back to the checkpoint of step 3; samples 12-15 are left out")) << rewind.output;
  EXPECT_EQ(shop.metric("rewind", "rejected_step"), std::vector<double>{4});
  ASSERT_EQ(shop.metric("skip", "loss").size(), 7u);
  EXPECT_EQ(shop.metric("skip", "loss"), shop.metric("rewind", "loss"));
  expect_near(shop.metric("skip", "loss"), shop.metric("alone", "loss"), relative);
  EXPECT_EQ(shop.choir("checkpoint verify " + bad_step(shop, "skip", 4)).code, 0);
}

INSTANTIATE_TEST_SUITE_P(Layouts, SpikeInLayout, ::testing::ValuesIn(layouts));

TEST(Spike, AFaultOfOneStepEndsTheRunWhichGoesOnAsIfNothingHadHappened) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "whole", "parallel.zero=1").code, 0);
  const Finished stopped = faulty_train(shop, 2, passing, "run", "parallel.zero=1 checkpoint.every=0");
  EXPECT_EQ(stopped.code, 3) << stopped.output;
  EXPECT_TRUE(contains(stopped, "saved " + shop.path("run") + "/checkpoints/step-00000003")) << stopped.output;
  EXPECT_TRUE(contains(stopped, "the run ends before step 4\n  why: ")) << stopped.output;
  EXPECT_TRUE(contains(stopped, "go on from the checkpoint of step 3 with --resume")) << stopped.output;
  EXPECT_TRUE(fs::exists(bad_step(shop, "run", 4) + "/step-00000003/manifest.json")) << stopped.output;
  const Finished resumed = shop.train(2, "run", "parallel.zero=1 checkpoint.every=0 --resume");
  EXPECT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("run", "loss"), shop.metric("whole", "loss"));
}

TEST(Spike, IsFoundByItsDeviationFromTheLastSteps) {
  const std::string fault = "passing:8:embedding.token.weight:101:1000";
  const std::string words = plain + "train.steps=10 train.spike.window=8 ";
  const Workshop shop;
  const Finished off = faulty_train(shop, 1, fault, "off", words + "train.spike.action=skip");
  EXPECT_EQ(off.code, 0) << off.output;
  EXPECT_TRUE(shop.metric("off", "rejected_step").empty()) << "nothing is a spike with sigma = 0";
  for (const LaunchLayout& layout : {layouts[0], layouts[1], layouts[3]}) {
    const Finished skip = faulty_train(shop, layout.ranks, fault, "skip",
                                       words + layout.words + " train.spike.action=skip train.spike.sigma=20");
    EXPECT_EQ(skip.code, 0) << skip.output;
    EXPECT_EQ(shop.metric("skip", "rejected_step"), std::vector<double>{8}) << skip.output;
    EXPECT_TRUE(contains(skip, " standard deviations above their means over the last steps")) << skip.output;
    fs::remove_all(shop.path("skip"));
  }
  const Finished stop = faulty_train(shop, 1, fault, "stop", words + "train.spike.sigma=20");
  EXPECT_EQ(stop.code, 3) << stop.output;
  EXPECT_TRUE(contains(stop, "train.spike.action = stop ends a run at a spike")) << stop.output;
  EXPECT_TRUE(contains(stop, "saved " + shop.path("stop") + "/checkpoints/step-00000007")) << stop.output;
}

// Threaded streams go on while the host does something else, as a GPU does: step 8 is enqueued before step 7 is known
// to be a spike. It changes nothing then, and is started again.
TEST(Spike, AStepBehindARejectedOneIsStartedAgain) {
  const std::string fault = "passing:7:embedding.token.weight:101:1000";
  const Workshop shop;
  for (const std::string action : {"skip", "rewind"}) {
    const std::string words = plain + "train.steps=12 checkpoint.every=5 train.spike.window=8 train.spike.sigma=20 " +
                              "train.spike.action=" + action;
    const Finished now = faulty_train(shop, 1, fault, "now-" + action, words);
    ASSERT_EQ(now.code, 0) << now.output;
    const Finished late = faulty_train(shop, 1, fault, "late-" + action, words + " train.streams=threaded");
    ASSERT_EQ(late.code, 0) << late.output;
    for (const char* key : {"step", "loss", "gradient_norm", "rejected_step", "rejected_loss", "held_out_loss"})
      EXPECT_EQ(shop.metric("late-" + action, key), shop.metric("now-" + action, key)) << key << ", " << action;
    EXPECT_EQ(shop.metric("late-" + action, "rejected_step"), std::vector<double>{7}) << late.output;
    EXPECT_EQ(shop.choir("checkpoint verify " + bad_step(shop, "late-" + action, 7)).code, 0);
  }
}

TEST(Spike, AResumedRunComparesWithTheSameSteps) {
  const Workshop shop;
  const std::string words = "train.spike.window=4 train.spike.sigma=0.3 train.spike.action=skip train.spike.most=100 ";
  ASSERT_EQ(shop.train(1, "whole", words + "train.steps=20").code, 0);
  ASSERT_FALSE(shop.metric("whole", "rejected_step").empty()) << "the test needs some";
  ASSERT_EQ(shop.train(1, "parts", words + "train.steps=20").code, 0);
  fs::remove_all(shop.path("parts") + "/checkpoints/step-00000015");
  fs::remove_all(shop.path("parts") + "/checkpoints/step-00000020");
  const Finished resumed = shop.train(1, "parts", words + "train.steps=20 --resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("parts", "rejected_step"), shop.metric("whole", "rejected_step"));
  EXPECT_EQ(shop.metric("parts", "loss"), shop.metric("whole", "loss"));
}

TEST(Spike, SamplesThatARunWentBackOverStayLeftOutWhenItIsResumed) {
  const Workshop shop;
  const std::string words = "checkpoint.every=3 train.spike.action=rewind train.steps=";
  ASSERT_EQ(faulty_train(shop, 1, passing, "whole", words + "9").code, 0);
  ASSERT_EQ(faulty_train(shop, 1, passing, "parts", words + "9").code, 0);
  fs::remove_all(shop.path("parts") + "/checkpoints/step-00000009");
  const Finished resumed = shop.train(1, "parts", words + "9 --resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "resuming " + shop.path("parts") + "/checkpoints/step-00000006")) << resumed.output;
  EXPECT_EQ(shop.metric("parts", "loss"), shop.metric("whole", "loss"));
  EXPECT_TRUE(contains(shop.choir("checkpoint show " + shop.path("parts")), "left_out")) << "its state has them";
}

TEST(Spike, TheRunStopsAfterTooManyInARow) {
  for (const std::string action : {"skip", "rewind"}) {
    const Workshop shop;
    const Finished run =
        faulty_train(shop, 2, "lasting:4:blocks.1.attention.q.weight:9:inf", "run",
                     "parallel.tensor=2 train.steps=20 train.spike.most=3 train.spike.action=" + action);
    EXPECT_EQ(run.code, 3) << run.output;
    EXPECT_TRUE(contains(run, "4 steps in a row were rejected, more than train.spike.most = 3")) << run.output;
    EXPECT_EQ(shop.metric("run", "rejected_step"), (std::vector<double>{4, 5, 6})) << "there is no checkpoint";
    EXPECT_FALSE(fs::exists(shop.path("run") + "/checkpoints/step-00000006")) << "the weights are not good";
    std::size_t folders = 0;
    for (const auto& entry : fs::directory_iterator(shop.path("run")))
      folders += entry.path().filename().string().starts_with("bad-step-");
    EXPECT_EQ(folders, 1u) << "the next bad steps begin with the same state";
  }
}

TEST(Replay, NamesTheWeightTheLayerTheHeadAndTheRankInAnyLayout) {
  const Workshop shop;
  const Finished run = faulty_train(shop, 2, "lasting:4:blocks.1.attention.q.weight:17:inf", "run", "parallel.zero=1");
  ASSERT_EQ(run.code, 3) << run.output;
  const std::string named =
      "the weight blocks.1.attention.q.weight (row 17, column 0; layer 1, head 2) is inf, on rank ";
  const std::string path = shop.path("run");
  for (const auto& [ranks, words, rank] : {std::tuple{1, "", "0"}, std::tuple{2, "parallel.tensor=2", "1"},
                                           std::tuple{2, "parallel.pipeline=2 parallel.stages=[2,2]", "1"}}) {
    const Finished replay = shop.mpirun(ranks, "replay " + path + " " + words);
    EXPECT_EQ(replay.code, 0) << replay.output;
    EXPECT_TRUE(contains(replay, named + rank)) << replay.output;
    EXPECT_TRUE(contains(replay, "step 4 on ")) << replay.output;
    EXPECT_TRUE(contains(replay, "in the run they were nan and nan, with samples 12-15")) << replay.output;
  }
}

/// The samples of the run whose inputs contain `token`, from `first` on, before `end`.
std::vector<std::int64_t> samples_with(const Workshop& shop, std::int32_t token, std::int64_t first, std::int64_t end) {
  const TokenFile file(shop.path("tokens.h5"));
  const Sampler sampler(file, {.sequence_length = 16, .seed = 1, .held_out = 0.2});
  std::vector<std::int64_t> samples;
  std::vector<std::int32_t> inputs(16), targets(16);
  for (std::int64_t sample = first; sample < end; ++sample) {
    sampler.train_sequence(sample, inputs, targets);
    if (std::find(inputs.begin(), inputs.end(), token) != inputs.end()) samples.push_back(sample);
  }
  return samples;
}

TEST(Replay, NamesTheSampleAndTheFirstPartThatGoesBadInAnyLayout) {
  const Workshop shop;
  std::string text = read(shop.path("text-0"));
  text.replace(text.find("sing"), 4, "siZg");  // the only Z
  std::ofstream(shop.path("text-0")) << text;
  ASSERT_EQ(shop.choir("prepare " + shop.path("tiny.yaml") + " " + shop.path("text-*")).code, 0);
  const std::vector<std::int64_t> all = samples_with(shop, 'Z', 0, 10000);
  ASSERT_FALSE(all.empty());
  const std::int64_t sample = all.front(), step = sample / 4 + 1;
  // Dropout of embeddings multiplies what it keeps by 10/9, which is too large for f32.
  const std::string words = "model.tied=false optimizer.weight_decay=0 ";
  const Finished run = faulty_train(shop, 1, "lasting:1:embedding.token.weight:90:3.3e38", "run",
                                    words + "train.steps=" + std::to_string(step + 3));
  ASSERT_EQ(run.code, 3) << run.output;
  const std::string named = "the output of embedding is inf for sample " + std::to_string(sample) +
                            " of the run (place " + std::to_string(sample % 4) + " of the batch, position ";
  for (const LaunchLayout& layout : layouts) {
    const Finished replay =
        shop.mpirun(layout.ranks, "replay " + bad_step(shop, "run", static_cast<int>(step)) + " " + layout.words);
    EXPECT_EQ(replay.code, 0) << replay.output;
    EXPECT_TRUE(contains(replay, named)) << replay.output;
  }
}

TEST(Replay, OfAStepThatIsFiniteNamesTheLargestGradients) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run").code, 0);
  const Finished refused = shop.choir("replay " + shop.path("run"));
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "has no folder bad-step-...")) << refused.output;
  std::string of_one_rank;
  for (const LaunchLayout& layout : layouts) {
    const Finished replay =
        shop.mpirun(layout.ranks, "replay " + shop.path("run") + "/checkpoints/step-00000005 " + layout.words);
    EXPECT_EQ(replay.code, 0) << replay.output;
    const std::size_t at = replay.output.find("everything is finite; the largest gradient is that of ");
    ASSERT_NE(at, std::string::npos) << replay.output;
    const std::string tensor = replay.output.substr(at, replay.output.find("; its largest", at) - at),
                      sample = replay.output.substr(replay.output.find("the sample with the largest gradient"));
    if (of_one_rank.empty()) of_one_rank = tensor + sample;
    EXPECT_EQ(tensor + sample, of_one_rank) << layout.words;
  }
}

}  // namespace
}  // namespace choir::tests
