// Every gradient of every small model against finite differences in double: each parameter tensor along a random
// direction, and a few single elements.
//
// Error model, for a step h along a unit direction and the five-point rule
//   f' = (8 (f(h) - f(-h)) - (f(2 h) - f(-2 h))) / (12 h) + h^4 f''''' / 30:
// truncation h^4 = 1e-11 times a fifth derivative of about the size of the gradient times 100, and rounding
// 1.5 u |loss| / h = 4e-13. Both are below the bound of 1e-6 of the tensor's root mean square, plus 1e-11 for gradients
// that are zero in exact arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "tests/model/double_run.h"

namespace choir::tests {
namespace {

constexpr std::int64_t sequences = 2;

class Gradients : public ::testing::TestWithParam<SmallModel> {
 protected:
  Gradients() : device(1), mesh(make_counting_mesh(0, {}, device, ring)) {}

  CallRing ring;
  Device device;
  Mesh mesh;  // of one rank: no verb of it moves anything
};

TEST_P(Gradients, AreFiniteDifferencesOfTheLoss) {
  DoubleRun run(GetParam().config, device, mesh);
  run.loss(sequences, sequences, true);
  run.choices.replays = true;  // the loss is smooth between two changes of a choice
  constexpr double h = 1e-3;
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  double worst = 0;

  for (const Parameter& p : run.store.parameters()) {
    if (p.sign_step) continue;  // its gradient is not that of the loss: tests/model/experts_test.cpp
    double* weight = p.value().data<double>();
    const double* gradient = p.gradient().data<double>();
    const auto count = static_cast<std::size_t>(p.held.count());
    const std::vector<double> start(weight, weight + count);
    double square = 0;
    for (std::size_t i = 0; i < count; ++i) square += gradient[i] * gradient[i];
    const double root_mean_square = std::sqrt(square / static_cast<double>(count));

    const auto check = [&](const std::vector<double>& direction, const std::string& what) {
      const auto loss_at = [&](double step) {
        for (std::size_t i = 0; i < count; ++i) weight[i] = start[i] + step * direction[i];
        return run.loss(sequences, sequences, false);
      };
      const double difference = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
      std::copy(start.begin(), start.end(), weight);
      double slope = 0;
      for (std::size_t i = 0; i < count; ++i) slope += gradient[i] * direction[i];
      const double bound = 1e-6 * root_mean_square + 1e-11;
      EXPECT_NEAR(slope, difference, bound) << p.name << what;
      worst = std::max(worst, std::abs(slope - difference) / bound);
    };

    std::vector<double> direction(count);
    double length = 0;
    for (double& d : direction) {
      d = normal(random);
      length += d * d;
    }
    for (double& d : direction) d /= std::sqrt(length);
    check(direction, " along a random direction");
    for (int single = 0; single < 3; ++single) {
      const std::size_t at = random() % count;
      std::fill(direction.begin(), direction.end(), 0.0);
      direction[at] = 1;
      check(direction, ", element " + std::to_string(at));
    }
  }
  RecordProperty("largest error / bound", std::to_string(worst));
}

TEST_P(Gradients, AccumulateOverMicroBatches) {
  DoubleRun run(GetParam().config, device, mesh);
  const double whole_loss = run.loss(6, 6, true);
  const Tensors whole = run.gradients();
  for (const std::int64_t micro_batch : {1, 2, 3}) {
    EXPECT_NEAR(run.loss(6, micro_batch, true), whole_loss, 1e-13 * whole_loss);
    expect_holds(
        compare("gradient of ", whole, run.gradients(), rounding_bound(run.model, 6 * run.model.context, DType::f64)));
  }
}

// In a second step the tokens choose the next expert or head: a forward that is run again repeats such choices too, and
// counts nothing twice.
TEST_P(Gradients, OfWhatIsComputedAgainHaveTheSameBits) {
  const auto two_steps = [&](Recompute kind) {
    DoubleRun run(GetParam().config, device, mesh, false, kind);
    const double loss = run.loss(4, 2, true);
    const Tensors gradients = run.gradients();
    for (auto& [layer, choices] : run.choices.choices) {
      const std::int32_t count = *std::max_element(choices.begin(), choices.end()) + 1;
      for (std::int32_t& choice : choices) choice = (choice + 1) % count;
    }
    run.choices.replays = true;
    const double other_loss = run.loss(4, 2, true);
    return std::tuple(loss, gradients, other_loss, run.gradients(), run.dropped, run.heads_dropped, run.rows_of_heads,
                      run.choices.differing);
  };
  const auto all_saved = two_steps(Recompute::none);
  const ModelConfig& model = GetParam().config;
  EXPECT_EQ(std::get<7>(all_saved) > 0, model.blocks_with_experts() > 0 || model.routes_heads());
  for (const Recompute kind : {Recompute::norms, Recompute::attention, Recompute::feed_forward, Recompute::block})
    EXPECT_TRUE(two_steps(kind) == all_saved) << name_of(kind);
}

TEST_P(Gradients, AStepTakesTheSameMemoryEachTime) {
  DoubleRun run(GetParam().config, device, mesh);
  run.loss(4, 2, true);
  const std::int64_t maps = device.allocator().maps(), in_use = device.allocator().in_use().total();
  for (int i = 0; i < 3; ++i) run.loss(4, 2, true);
  EXPECT_EQ(device.allocator().maps(), maps) << "a later step asked the system for memory";
  EXPECT_EQ(device.allocator().in_use().total(), in_use) << "a step kept memory";
}

TEST_P(Gradients, GenerationGivesTheProbabilitiesThatTrainingSaw) {
  ModelConfig model = GetParam().config;
  if (model.family != ModelFamily::decoder && !model.has_source()) GTEST_SKIP() << "only a decoder generates text";
  model.dropout = model.attention.dropout = 0;
  model.experts.balance = ExpertBalance::none;
  model.attention.routing.balance_weight = 0;
  DoubleRun run(model, device, mesh);
  const std::int64_t length = model.context;
  const double trained = run.loss(1, 1, false) * static_cast<double>(length);
  if (const std::int64_t prefix = model.attention.prefix; prefix > 0) {  // which comes at once
    EXPECT_NEAR(generated_loss(run, 0, {prefix, 1}), trained, 1e-12 * trained);
    return;
  }
  EXPECT_NEAR(generated_loss(run, 0, {1}), trained, 1e-12 * trained) << "token by token";
  // A prompt of three, then token by token: only the last token of a piece gives logits.
  const double tail = generated_loss(run, 0, {3, 1});
  EXPECT_LT(tail, trained);
  double first_two = 0;
  for (std::int64_t n = 1; n <= 2; ++n)
    first_two += generated_loss(run, 0, {n, length}) - generated_loss(run, 0, {length});
  EXPECT_NEAR(first_two + tail, trained, 1e-12 * trained) << "with a prompt";
}

INSTANTIATE_TEST_SUITE_P(Models, Gradients, ::testing::ValuesIn(small_models()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
