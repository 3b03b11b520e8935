// Evaluation can be stopped between micro-batches, on all ranks at the same one; and optimizer state that begins late.
#include <gtest/gtest.h>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

TEST(Evaluation, StopsBetweenMicroBatchesAndLeavesNothingBehind) {
  const SmallModel model = models_under_test().front();
  const Layout layout{.name = "data", .data = world_size(), .micro_batch = 1};
  SmallRun run(model.config, safe_adamw(0.01), layout);
  const ReadSample read = read_random(model.config);
  const std::int64_t samples = 3 * world_size() + 1;  // the last round has work for one rank only
  int asked = 0;
  const auto never = [&] { return ++asked, false; };
  const auto whole = run.trainer.evaluate(samples, read, never);
  ASSERT_TRUE(whole);
  EXPECT_EQ(asked, 4);
  EXPECT_EQ(whole->tokens, samples * model.config.context);

  asked = 0;
  EXPECT_FALSE(run.trainer.evaluate(samples, read, [&] { return ++asked == 2; }));
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(run.trainer.evaluate(samples, read).loss, whole->loss);
}

TEST(Evaluation, DoesNotDependOnTheLayout) {
  const SmallModel model = models_under_test().front();
  const auto loss = [&](const Layout& layout) {
    SmallRun run(model.config, safe_adamw(0.01), layout);
    return run.trainer.evaluate(7, read_random(model.config)).loss;
  };
  const double all_at_once = loss({.name = "data", .data = world_size()});
  EXPECT_NEAR(loss({.name = "data, micro-batch 1", .data = world_size(), .micro_batch = 1}), all_at_once,
              1e-5 * all_at_once);
  EXPECT_NEAR(loss({.name = "tensor", .tensor = world_size()}), all_at_once, 1e-5 * all_at_once);
}

// Fewer sequences than all ranks need: a rank without one still takes part in gathering the weights.
TEST(Evaluation, OfFiveSequencesWithSplitWeightsIsThatOfOneRank) {
  const SmallModel model = models_under_test().front();
  const double alone = run_alone(model.config, safe_adamw(0.01))->trainer.evaluate(5, read_random(model.config)).loss;
  for (const int zero : {2, 3}) {
    SmallRun run(model.config, safe_adamw(0.01),
                 {.name = "data", .data = world_size(), .zero = zero, .micro_batch = 1});
    EXPECT_NEAR(run.trainer.evaluate(5, read_random(model.config)).loss, alone, 1e-5 * alone) << zero;
  }
}

// Expert ranks exchange rows also if one of them has fewer sequences.
TEST(Evaluation, OfFiveSequencesWithSplitExpertsIsThatOfOneRank) {
  const ModelConfig model = small_model("experts");
  const double alone = run_alone(model, safe_adamw(0.01))->trainer.evaluate(5, read_random(model)).loss;
  for (int expert = 1; expert <= world_size(); ++expert) {
    if (world_size() % expert != 0) continue;
    for (const std::int64_t micro_batch : {1, 0}) {
      SmallRun run(model, safe_adamw(0.01),
                   {.name = "data", .data = world_size(), .micro_batch = micro_batch, .expert = expert});
      EXPECT_NEAR(run.trainer.evaluate(5, read_random(model)).loss, alone, 1e-5 * alone) << expert;
    }
  }
}

TEST(OptimizerState, ThatBeginsLateHasBiasCorrectionsOfItsOwn) {
  const SmallModel model = models_under_test().front();
  SmallRun run(model.config, safe_adamw(0.01), {.name = "data", .data = world_size()});
  Optimizer& optimizer = run.trainer.optimizer();
  const kernels::StepScalars first = optimizer.scalars(1, 0.01);
  optimizer.set_state_origin(7);
  const kernels::StepScalars eighth = optimizer.scalars(8, 0.01);
  EXPECT_EQ(eighth.bias_correction1, first.bias_correction1);
  EXPECT_EQ(eighth.bias_correction2, first.bias_correction2);
  EXPECT_EQ(eighth.step, 8u) << "dropout goes on";
}

}  // namespace
}  // namespace choir::tests
