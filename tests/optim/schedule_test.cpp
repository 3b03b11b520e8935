// Learning rates against their formulas.
#include "framework/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace choir::tests {
namespace {

constexpr double rate = 3e-4, final_rate = 0.1;

constexpr std::array every_schedule = {Schedule::cosine, Schedule::linear, Schedule::constant,
                                       Schedule::warmup_stable_decay};
static_assert(every_schedule.size() == names<Schedule>.size());

OptimizerConfig config(Schedule schedule, std::int64_t warmup, std::int64_t decay = 0) {
  return {.rate = rate, .schedule = schedule, .warmup = warmup, .decay = decay, .final_rate = final_rate};
}

TEST(Schedule, EveryKindRisesLinearlyFromZero) {
  for (const Schedule kind : every_schedule)
    for (std::int64_t step = 1; step <= 20; ++step)
      EXPECT_DOUBLE_EQ(learning_rate(config(kind, 20, 30), step, 100), rate * static_cast<double>(step) / 20)
          << name_of(kind);
}

TEST(Schedule, FallsByFormula) {
  constexpr std::int64_t warmup = 20, decay = 30, steps = 100;
  for (std::int64_t step = warmup; step <= steps; ++step) {
    const double share = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
    const double stable =
        step <= steps - decay ? 0 : static_cast<double>(step - (steps - decay)) / static_cast<double>(decay);
    const auto at = [&](Schedule kind) { return learning_rate(config(kind, warmup, decay), step, steps); };
    const auto between = [](double fall) { return rate * (1 - (1 - final_rate) * fall); };
    EXPECT_NEAR(at(Schedule::cosine), between((1 - std::cos(std::numbers::pi * share)) / 2), 1e-15 * rate + 1e-19);
    EXPECT_NEAR(at(Schedule::linear), between(share), 1e-15 * rate + 1e-19);
    EXPECT_NEAR(at(Schedule::warmup_stable_decay), between(stable), 1e-15 * rate + 1e-19);
    EXPECT_EQ(at(Schedule::constant), rate);
  }
}

TEST(Schedule, EndsAtTheFinalRate) {
  for (const Schedule kind : {Schedule::cosine, Schedule::linear, Schedule::warmup_stable_decay})
    EXPECT_NEAR(learning_rate(config(kind, 20, 30), 100, 100), final_rate * rate, 1e-19) << name_of(kind);
}

TEST(Schedule, BordersGiveFiniteRates) {
  for (const Schedule kind : every_schedule) {
    EXPECT_GT(learning_rate(config(kind, 0), 1, 100), 0) << name_of(kind) << ": no warm-up";
    EXPECT_EQ(learning_rate(config(kind, 10), 10, 10), rate) << name_of(kind) << ": nothing but warm-up";
    for (const std::int64_t step : {1, 5, 10, 11, 20})
      EXPECT_TRUE(std::isfinite(learning_rate(config(kind, 0, 10), step, 10)))
          << name_of(kind) << ", step " << step << " of 10";
  }
}

}  // namespace
}  // namespace choir::tests
