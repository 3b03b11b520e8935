// Which steps are accepted: against the definition of a standard deviation, in double.
#include "kernels/verdict.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace choir::kernels::tests {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

struct Judge {
  explicit Judge(int of_length = 0, double of_sigma = 0) : length(of_length), sigma(of_sigma) {}

  StepScalars operator()(double loss, double norm) {
    StepScalars scalars{.targets = 4};
    const double sum = 4 * loss, square = norm * norm;
    judge_step(Cpu{}, {.loss_sum = &sum,
                       .squared_norm = &square,
                       .window = length > 0 ? window.get() : nullptr,
                       .length = length,
                       .sigma = sigma,
                       .scalars = &scalars});
    return scalars;
  }

  int length;
  double sigma;
  std::unique_ptr<SpikeWindow> window = std::make_unique<SpikeWindow>();
};

TEST(Verdict, WhatIsNotFiniteIsRejected) {
  for (const int length : {0, 8}) {
    Judge judge(length, 3);
    EXPECT_EQ(judge(2, 1).accepted, 1u);
    EXPECT_EQ(judge(nan, 1).accepted, 0u);
    EXPECT_EQ(judge(infinity, 1).accepted, 0u);
    EXPECT_EQ(judge(-infinity, 1).accepted, 0u);
    EXPECT_EQ(judge(2, nan).accepted, 0u);
    EXPECT_EQ(judge(2, infinity).accepted, 0u);
    EXPECT_EQ(judge(1e300, 1e150).accepted, 1u) << "large numbers are no fault without a window that is half known";
  }
}

TEST(Verdict, WithoutALossTheNormIsJudged) {
  const double square = 4, bad = nan;
  StepScalars scalars;
  judge_step(Cpu{}, {.squared_norm = &square, .scalars = &scalars});
  EXPECT_EQ(scalars.accepted, 1u);
  judge_step(Cpu{}, {.squared_norm = &bad, .scalars = &scalars});
  EXPECT_EQ(scalars.accepted, 0u);
}

// The host learns of a rejected step when the next ones are enqueued already.
TEST(Verdict, WhatIsBehindARejectedStepIsRejectedUntilTheHostKnows) {
  std::uint64_t rejected = 0;
  const auto window = std::make_unique<SpikeWindow>();
  const auto accepted = [&](std::uint64_t step, double value) {
    StepScalars scalars{.step = step, .targets = 1};
    judge_step(Cpu{}, {.loss_sum = &value,
                       .squared_norm = &value,
                       .window = window.get(),
                       .length = 8,
                       .sigma = 3,
                       .scalars = &scalars,
                       .rejected = &rejected});
    return scalars.accepted == 1;
  };
  EXPECT_TRUE(accepted(1, 2));
  EXPECT_FALSE(accepted(2, nan));
  EXPECT_EQ(rejected, 2u);
  EXPECT_FALSE(accepted(3, 2));
  EXPECT_FALSE(accepted(4, nan));
  EXPECT_EQ(rejected, 2u) << "the first one";
  EXPECT_EQ(window->accepted, 1) << "they are compared with nothing";
  rejected = 0;
  EXPECT_TRUE(accepted(3, 2));
  EXPECT_EQ(window->accepted, 2);
}

TEST(Verdict, DeviationsAreThoseOfTheLastAcceptedSteps) {
  constexpr int length = 10;
  Judge judge(length, 6);
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> losses, norms;
  const auto deviations = [](const std::vector<double>& all, double value) {
    const std::vector<double> last(all.end() - std::min<std::ptrdiff_t>(std::ssize(all), length), all.end());
    double mean = 0, square = 0;
    for (const double x : last) mean += x / static_cast<double>(last.size());
    for (const double x : last) square += (x - mean) * (x - mean) / static_cast<double>(last.size() - 1);
    return (value - mean) / std::sqrt(square);
  };
  for (int step = 0; step < 50; ++step) {
    const bool spike = step >= 8 && step % 9 == 0;
    const double loss = 3 + 0.1 * normal(random) + (spike && step % 2 == 0 ? 5 : 0);
    const double norm = 1 + 0.1 * normal(random) + (spike && step % 2 == 1 ? 5 : 0);
    const StepScalars verdict = judge(loss, norm);
    EXPECT_EQ(verdict.accepted, spike ? 0u : 1u) << step;
    if (losses.size() >= length / 2) {
      EXPECT_NEAR(verdict.loss_deviations, deviations(losses, loss), 1e-5 * std::abs(deviations(losses, loss)) + 1e-6);
      EXPECT_NEAR(verdict.norm_deviations, deviations(norms, norm), 1e-5 * std::abs(deviations(norms, norm)) + 1e-6);
    } else {
      EXPECT_EQ(verdict.loss_deviations, 0) << "too few steps are known";
    }
    if (spike) continue;
    losses.push_back(loss);
    norms.push_back(norm);
  }
  EXPECT_EQ(judge.window->accepted, std::ssize(losses));
}

TEST(Verdict, LowValuesAreNoSpikes) {
  Judge judge(4, 3);
  for (const double loss : {3.0, 3.1, 2.9, 3.0, 0.1}) EXPECT_EQ(judge(loss, loss).accepted, 1u);
}

TEST(Verdict, EqualValuesHaveADeviationAllTheSame) {
  Judge judge(4, 3);
  for (int i = 0; i < 4; ++i) judge(2, 1);
  EXPECT_EQ(judge(2 * (1 + 1e-9), 1).accepted, 1u) << "rounding";
  EXPECT_EQ(judge(2 * (1 + 1e-2), 1).accepted, 0u);
}

}  // namespace
}  // namespace choir::kernels::tests
