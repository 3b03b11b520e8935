// A step's loss is the sum over the targets of the global batch, divided by their number, however unevenly
// micro-batches and ranks have them: gradients are those of one rank with one micro-batch. A mean of the means of
// micro-batches, or of ranks, fails here.
#include <gtest/gtest.h>

#include "framework/core/error.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

/// In the first half of the batch every second sample has one target and the others none; in the second half the
/// samples have one, two, three and so on. All are at the front of the sequence, which one context rank holds.
ReadSample read_uneven(const ModelConfig& model) {
  return [model](std::int64_t index, const Sample& sample) {
    random_sample(model, random_key_of_tests, index, sample);
    const std::span<std::int32_t> targets = sample.targets;
    const auto length = static_cast<std::int64_t>(targets.size());
    const std::int64_t counted = index < batch / 2 ? index % 2 : std::min(length, index - batch / 2 + 1);
    std::fill(targets.begin() + counted, targets.end(), -1);
    return std::int64_t{0};
  };
}

std::int64_t targets_of(const ModelConfig& model, const ReadSample& read) {
  SampleBuffer sample(model);
  std::int64_t count = 0;
  for (std::int64_t index = 0; index < batch; ++index) {
    read(index, sample.view());
    count += std::count_if(sample.targets.begin(), sample.targets.end(), [](std::int32_t token) { return token >= 0; });
  }
  return count;
}

double loss_of(SmallRun& run, const BatchLoss& loss) {
  double sum = 0;
  ops::download(run.trainer.runtime(), loss.sum, &sum);
  return sum / static_cast<double>(loss.targets);
}

TEST(Targets, GradientsAreThoseOfTheMeanOverTheTargetsOfTheWholeBatch) {
  for (const char* name : {"gpt", "window_8_of_2", "experts", "encoder", "vision"}) {
    const ModelConfig model = small_model(name);
    const ReadSample read = read_uneven(model);
    const double bound = rounding_bound(model, batch * model.context, DType::f32);
    const auto alone = run_alone(model, plain_sgd(0.1));
    const BatchLoss whole = alone->compute_gradients(0, read);
    const double loss = loss_of(*alone, whole);
    EXPECT_EQ(whole.targets, targets_of(model, read));
    const Tensors gradients = alone->gradients();
    for (const Layout& layout : layouts(world_size(), model)) {
      SCOPED_TRACE(std::string(name) + ", " + layout.name);
      SmallRun run(model, plain_sgd(0.1), layout);
      run.replay(*alone);
      const BatchLoss here = run.compute_gradients(0, read);
      EXPECT_EQ(here.targets, whole.targets);
      EXPECT_NEAR(loss_of(run, here), loss, loss * bound);
      expect_holds(compare("gradient of ", gradients, run.gradients(), bound));
    }
  }
}

// The balance loss of experts is a mean over all rows, however few of them are targets.
TEST(Targets, TheBalanceLossOfExpertsDoesNotDependOnTheirNumber) {
  const ModelConfig model = small_model("experts");
  SmallRun all(model, plain_sgd(0.1), {.name = "data", .data = world_size()});
  SmallRun few(model, plain_sgd(0.1), {.name = "data", .data = world_size()});
  EXPECT_EQ(few.trainer.step(1, read_uneven(model)).balance_loss, all.step(0).balance_loss);
}

TEST(Targets, TheGradientOfTheBalanceLossDoesNotDependOnTheirNumber) {
  const ModelConfig model = small_model("experts");
  const auto of_balance = [&](const ReadSample& read) {
    const auto router_gradient = [&](double weight) {
      ModelConfig weighted = model;
      weighted.experts.balance_weight = weight;
      SmallRun run(weighted, plain_sgd(0.1), {.name = "data", .data = world_size()});
      run.compute_gradients(0, read);
      return run.gradients().at("blocks.1.feed_forward.router.weight");
    };
    return difference_of(router_gradient(0.1), router_gradient(0));
  };
  const std::vector<double> all = of_balance(read_random(model)), few = of_balance(read_uneven(model));
  EXPECT_GT(root_mean_square(all), 0);
  EXPECT_LT(root_mean_square(difference_of(few, all)), 1e-4 * root_mean_square(all));
}

TEST(Targets, ABatchReadAheadIsThatOfTheNextStepAndOfNoOther) {
  const ModelConfig model = small_model("gpt");
  const Layout layout{.name = "data", .data = world_size()};
  SmallRun plain(model, plain_sgd(0.1), layout), ahead(model, plain_sgd(0.1), layout);
  const ReadSample never = [](std::int64_t, const Sample&) {
    ADD_FAILURE() << "the batch has been read already";
    return std::int64_t{0};
  };
  for (std::int64_t step = 1; step <= 3; ++step) {
    const ReadSample read = read_random(model, step), read_next = read_random(model, step + 1);
    const double loss = ahead.trainer.step(step, step == 1 ? read : never, {}, read_next).loss;
    EXPECT_EQ(loss, plain.trainer.step(step, read).loss) << step;
  }
  const ReadSample other = read_random(model, 9);  // after the run has gone back
  EXPECT_EQ(ahead.trainer.step(2, other).loss, plain.trainer.step(2, other).loss);
}

TEST(Targets, ABatchWithoutAnyIsRefusedOnEveryRank) {
  const ModelConfig model = small_model("gpt");
  const ReadSample none = [&](std::int64_t index, const Sample& sample) {
    random_sample(model, random_key_of_tests, index, sample);
    std::fill(sample.targets.begin(), sample.targets.end(), -1);
    return std::int64_t{0};
  };
  for (const Layout& layout : layouts(world_size(), model)) {
    SmallRun run(model, plain_sgd(0.1), layout);
    try {
      run.trainer.step(7, none);
      ADD_FAILURE() << layout.name << ": nothing was thrown";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("step 7: nothing in the batch is a target"), std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace choir::tests
