// The lists of parts, and what is known of them without making them.
#include "framework/model/families.h"

#include <gtest/gtest.h>

#include "framework/model/stage.h"
#include "tests/support/small_models.h"

namespace choir::tests {
namespace {

TEST(Families, NumPartsIsTheLengthOfTheList) {
  for (const SmallModel& model : small_models())
    EXPECT_EQ(num_parts(model.config), std::ssize(make_parts(model.config, Recompute::none))) << model.name;
}

// The head of GPT-2 124M costs about as much as four of its blocks, and backward twice as much as forward.
TEST(Families, CostsOfPartsAreCounted) {
  ModelConfig gpt2;  // the defaults
  const PieceTimes costs = count_costs(make_parts(gpt2, Recompute::none), gpt2, {});
  ASSERT_EQ(std::ssize(costs.forward), num_parts(gpt2));
  const auto total = [&](std::size_t i) { return costs.forward[i] + costs.backward[i] + costs.weights[i]; };
  EXPECT_LT(total(0), 0.01 * total(1)) << "the embedding";
  EXPECT_EQ(total(1), total(12)) << "all blocks";
  EXPECT_NEAR(total(13) / total(1), 4.9, 0.5) << "the head, by its 38.6 million parameters and attention's share";
  EXPECT_NEAR((costs.backward[1] + costs.weights[1]) / costs.forward[1], 2, 0.2);
  EXPECT_GT(costs.weights[1], 0.8 * costs.forward[1] * 6 / 7);
}

}  // namespace
}  // namespace choir::tests
