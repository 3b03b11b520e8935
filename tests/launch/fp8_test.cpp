// train.precision: fp8 through the program: it learns as bf16 does, in several layouts, and goes on with the same bits.
//
// How far losses may differ: a factor of a product in 8 bits is off by u = 0.0266 of itself in root mean square
// (framework/train/comparison.h), and the two blocks of the model have eight products in a row of two factors each.
// Sums of independent errors, the last numbers of the stream are off by at most e = u sqrt(16) = 0.11 of themselves,
// and so are the scores s, whose root mean square is below 1 in these ten steps. The loss of a token changes by the
// error of its score, and by half the variance of the errors of all; the mean over 64 tokens by 4 e s / 8 + e^2 s^2 / 2
// = 0.06.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string fp8 = " train.precision=fp8 train.emulate_bf16=true";

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST(Fp8Run, LearnsAsBf16DoesInSeveralLayouts) {
  const Workshop shop;
  const Finished bf16 = shop.train(1, "bf16", "train.precision=bf16 train.emulate_bf16=true");
  ASSERT_EQ(bf16.code, 0) << bf16.output;
  const std::vector<double> losses = shop.metric("bf16", "loss");
  const std::pair<int, std::string> layouts[] = {{1, ""},
                                                 {2, "parallel.tensor=2 parallel.sequence=true"},
                                                 {2, "parallel.pipeline=2 parallel.micro_batch=2"},
                                                 {3, "parallel.tensor=3"}};
  for (const auto& [ranks, layout] : layouts) {
    const std::string run = "fp8-" + std::to_string(ranks) + std::to_string(layout.size());
    const Finished finished = shop.train(ranks, run, layout + fp8);
    ASSERT_EQ(finished.code, 0) << finished.output;
    EXPECT_TRUE(contains(finished, "fp8: a CPU multiplies in bf16 what numbers of 8 bits stand for"))
        << finished.output;
    const double difference = largest_difference(losses, shop.metric(run, "loss"));
    EXPECT_LT(difference, 0.06) << layout;
    EXPECT_GT(difference, 0) << "nothing was rounded to 8 bits";
    ::testing::Test::RecordProperty(layout.empty() ? "one rank" : layout, std::to_string(difference));
  }
}

// Of configs/quickstart.yaml, with sequences of half the length, at its first rates: weights must not drift apart. Its
// four blocks have sixteen products in a row: e = u sqrt(32) = 0.15, and over the 256 tokens of a step
// 4 e s / 16 + e^2 s^2 / 2 = 0.049.
TEST(Fp8Run, TheModelOfTheQuickstartLearnsAsInBf16) {
  const Workshop shop;
  const std::string model =
      "model.layers=4 model.width=192 model.attention.heads=6 model.feed_forward.width=768 model.context=64 "
      "train.batch=4 train.steps=24 optimizer.rate=2e-3 optimizer.warmup=20 train.emulate_bf16=true train.precision=";
  const auto losses = [&](const std::string& precision) {
    const Finished run = shop.train(1, precision, model + precision);
    EXPECT_EQ(run.code, 0) << run.output;
    return shop.metric(precision, "loss");
  };
  const double difference = largest_difference(losses("bf16"), losses("fp8"));
  EXPECT_LT(difference, 0.049);
  EXPECT_GT(difference, 0) << "nothing was rounded to 8 bits";
  ::testing::Test::RecordProperty("difference", std::to_string(difference));
}

TEST(Fp8Run, GoesOnWithTheBitsOfTheRunThatWasNotInterrupted) { expect_exact_resume({2, "parallel.tensor=2" + fp8}); }

}  // namespace
}  // namespace choir::tests
