// Layout parity: every layout computes what one rank computes. One rank runs in the same process, on MPI_COMM_SELF.
//
// Gradients, and what three steps of SGD and of AdamW add to the parameters, are compared in the root mean square of
// each tensor, under the bounds of framework/train/comparison.h.
//
// A new model is an entry of tests/support/small_models.h, a new layout one of layouts() in small_run.h.
#include <gtest/gtest.h>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

class Parity : public ::testing::TestWithParam<SmallModel> {
 protected:
  /// How much of a bound was used, into the report of --gtest_output=xml.
  static void record(const Layout& layout, const std::string& what, double share) {
    RecordProperty(layout.name + ": " + what + " error / bound", std::to_string(share));
  }
};

TEST_P(Parity, GradientsAndSgdAndAdamwStepsAreThoseOfOneRank) {
  const ModelConfig model = GetParam().config;
  const std::int64_t sgd_steps = device_is_simulated() ? 1 : 3;  // an interpreter takes a second for one
  const std::int64_t adamw_steps = device_is_simulated() ? 2 : 3;
  const double bound = rounding_bound(model, batch * model.context, DType::f32);
  const OptimizerConfig sgd = plain_sgd(0.02);

  const auto alone = run_alone(model, sgd);
  const Tensors start = alone->masters();
  std::vector<double> losses, norms;
  Tensors gradients;  // of the first step
  losses.push_back(alone->step(0, [&] { gradients = alone->gradients(); }).loss);
  for (std::int64_t s = 1; s < sgd_steps; ++s) losses.push_back(alone->step(s).loss);
  const Tensors after_sgd = alone->masters();
  OptimizerConfig adamw = safe_adamw(0.02);
  adamw.epsilon = largest_gradient(gradients, all_parameters(model));  // compare_updates() says why
  const auto alone_adamw = run_alone(model, adamw);
  for (std::int64_t s = 0; s < adamw_steps; ++s) norms.push_back(alone_adamw->step(s).gradient_norm);
  const Tensors after_adamw = alone_adamw->masters();

  for (const Layout& layout : layouts(world_size(), model)) {
    SCOPED_TRACE(GetParam().name + ", " + layout.name);
    double worst_gradient = 0, worst_sgd = 0, worst_adamw = 0;
    {
      SmallRun run(model, sgd, layout);
      run.replay(*alone);
      const auto expect_gradients = [&] {
        const Tensors actual = run.gradients();
        worst_gradient = expect_holds(compare("gradient of ", gradients, actual, bound));
        expect_held_equal(run.device, run.trainer.parameters(), run.trainer.shards(), &Bucket::gradient, actual,
                          "gradient");
      };
      for (std::int64_t s = 0; s < sgd_steps; ++s) {
        const double expected = losses[static_cast<std::size_t>(s)];
        const double loss = run.step(s, s == 0 ? expect_gradients : std::function<void()>()).loss;
        EXPECT_NEAR(loss, expected, expected * bound) << "step " << s + 1;
      }
      const Tensors masters = run.masters();
      worst_sgd = expect_holds(compare_updates("SGD update of ", start, after_sgd, masters, bound));
      run.expect_copies_equal(masters);
      run.expect_choices_within(8 * bound);
    }
    {
      SmallRun run(model, adamw, layout);
      run.replay(*alone_adamw);
      for (std::int64_t s = 0; s < adamw_steps; ++s) {
        const double expected = norms[static_cast<std::size_t>(s)];
        EXPECT_NEAR(run.step(s).gradient_norm, expected, expected * bound) << "gradient norm of step " << s + 1;
      }
      const Tensors masters = run.masters();
      worst_adamw = expect_holds(compare_updates("AdamW update of ", start, after_adamw, masters, bound));
      run.expect_copies_equal(masters);
    }
    record(layout, "gradient", worst_gradient);
    record(layout, "SGD", worst_sgd);
    record(layout, "AdamW", worst_adamw);
  }
}

TEST_P(Parity, EveryElementIsCountedByOneRankOfACopy) {
  const ModelConfig model = GetParam().config;
  for (const Layout& layout : layouts(world_size(), model)) {
    SmallRun run(model, plain_sgd(0.1), layout);
    const ParameterStore& store = run.trainer.parameters();
    std::vector<std::int32_t> owned = {0};  // of all expert ranks, which hold the same of all but the experts
    for (const Parameter& p : store.parameters())
      if (store.replicas(p.weight->group) == Replicas::expert || run.mesh.expert->rank() == 0)
        owned[0] += static_cast<std::int32_t>((p.owned_end - p.owned_begin) * p.held.columns());
    const Tensor sum = ops::to_device(run.trainer.runtime(), owned, DType::i32);
    run.mesh.tensor->all_reduce(sum, Reduce::sum, run.device.compute(), "test");
    run.mesh.pipeline->all_reduce(sum, Reduce::sum, run.device.compute(), "test");
    run.mesh.expert->all_reduce(sum, Reduce::sum, run.device.compute(), "test");
    ops::download(run.trainer.runtime(), sum, owned.data());
    EXPECT_EQ(owned[0], all_parameters(model).global_count()) << layout.name;
    run.masters();  // fails if an element is counted twice or never
  }
}

TEST_P(Parity, StartValuesAreTheSameBitsInEveryLayout) {
  const ModelConfig model = GetParam().config;
  const Tensors alone = run_alone(model, plain_sgd(0.1))->masters();
  for (const Layout& layout : layouts(world_size(), model))
    EXPECT_EQ(SmallRun(model, plain_sgd(0.1), layout).masters(), alone) << layout.name;
}

// What is computed again: one kind for each layout, in turns that begin elsewhere for other models and numbers of
// ranks. What is still saved leaves the device and returns. A simulated GPU runs its threads in another order each
// time.
TEST_P(Parity, TheSameLayoutGivesTheSameBitsWithThreadedStreamsAndIfAPartIsComputedAgainAndOffloaded) {
  const ModelConfig model = GetParam().config;
  const std::int64_t steps = device_is_simulated() ? 1 : 2;
  const auto trained = [&](const Layout& layout) {
    SmallRun run(model, safe_adamw(0.01), layout);
    double loss = 0;
    for (std::int64_t s = 0; s < steps; ++s) loss = run.step(s).loss;
    return std::make_tuple(loss, run.gradients(), run.masters());
  };
  constexpr Recompute kinds[] = {Recompute::norms, Recompute::attention, Recompute::feed_forward, Recompute::block};
  std::size_t turn = GetParam().name.size() + static_cast<std::size_t>(world_size());
  for (const Layout& layout : layouts(world_size(), model)) {
    const auto bits = trained(layout);
    Layout other = layout;
    other.recompute = layout.recompute == Recompute::none ? kinds[turn++ % std::size(kinds)] : Recompute::none;
    other.offload = Offload::optimizer_and_activations;
    EXPECT_EQ(trained(other), bits) << layout.name << ": " << name_of(other.recompute);
    if (device_is_simulated()) continue;  // a GPU has its own streams
    other = layout;
    other.streams = StreamMode::threaded;
    EXPECT_EQ(trained(other), bits) << layout.name << ": threaded";
  }
}

// Another stage of ZeRO on each number of ranks.
TEST(Offload, GivesTheSameBits) {
  if (!device_is_simulated()) GTEST_SKIP() << "on the CPU all memory is the host's";
  const int ranks = world_size(), zero = ranks == 1 ? 0 : ranks == 2 ? 3 : 1;
  const auto trained = [&](Offload offload) {
    Config config = small_config(small_model("gpt"), safe_adamw(0.01),
                                 {.name = "data", .data = ranks, .zero = zero, .micro_batch = 2});
    config.train.precision = Precision::bf16;
    config.train.offload = offload;
    SmallRun run(config);
    std::int64_t maps = 0;
    for (std::int64_t s = 0; s < 3; ++s) {
      run.step(s);
      if (s < 2) maps = run.device.allocator().maps();
    }
    EXPECT_EQ(run.device.allocator().maps(), maps) << "blocks of memory are used again, step for step";
    EXPECT_EQ(run.trainer.offloaded_bytes() > 0, offload != Offload::none);
    return std::make_pair(run.gradients(), run.masters());
  };
  const auto bits = trained(Offload::none);
  for (const Offload offload : {Offload::optimizer, Offload::optimizer_and_activations})
    EXPECT_EQ(trained(offload), bits) << "zero " << zero << ", " << name_of(offload);
}

TEST_P(Parity, EvaluationCountsEveryTargetOnce) {
  const ModelConfig model = GetParam().config;
  constexpr std::int64_t samples = 11;  // no number of ranks divides it
  const ReadSample read = [&](std::int64_t index, const Sample& sample) {
    random_sample(model, random_key_of_tests, index, sample);
    if (index == samples - 1) sample.targets.back() = -1;  // the filled-up end of a text
    return static_cast<std::int64_t>(sample.targets.size()) + index;
  };
  const LossSum alone = run_alone(model, plain_sgd(0.1))->trainer.evaluate(samples, read);
  EXPECT_EQ(alone.tokens, samples * model.targets_of_sequence() - 1);
  EXPECT_EQ(alone.bytes, samples * model.targets_of_sequence() + samples * (samples - 1) / 2);
  for (const Layout& layout : layouts(world_size(), model)) {
    SmallRun run(model, plain_sgd(0.1), layout);
    const LossSum sum = run.trainer.evaluate(samples, read);
    EXPECT_EQ(sum.tokens, alone.tokens) << layout.name;
    EXPECT_EQ(sum.bytes, alone.bytes) << layout.name;
    EXPECT_EQ(sum.right, alone.right) << layout.name;
    EXPECT_NEAR(sum.loss, alone.loss, alone.loss * rounding_bound(model, samples * model.context, DType::f32))
        << layout.name;
  }
}

TEST_P(Parity, Bf16GradientsAreThoseOfOneRankAndValuesAreRoundedMasters) {
  const ModelConfig model = GetParam().config;
  const double bound = rounding_bound(model, batch * model.context, DType::bf16);
  EXPECT_LT(bound, 0.25) << "a gradient of zeros differs by 1";
  const auto alone = run_alone(model, plain_sgd(0.1), Precision::bf16);
  alone->compute_gradients();
  const Tensors gradients = alone->gradients();
  for (const Layout& layout : layouts(world_size(), model)) {
    SCOPED_TRACE(layout.name);
    Config config = small_config(model, plain_sgd(0.1), layout);
    config.train.precision = Precision::bf16;
    SmallRun run(config);
    run.replay(*alone);
    run.step(0, [&] {
      const double worst = expect_holds(compare("bf16 gradient of ", gradients, run.gradients(), bound));
      record(layout, "bf16 gradient", worst);
    });
    run.expect_choices_within(4 * bound);

    if (!device_is_simulated()) run.step(1);
    run.expect_copies_equal(run.masters());
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Parity, ::testing::ValuesIn(models_under_test()),
                         [](const auto& instance) { return instance.param.name; });

// The promise of the design: losses over 20 steps within 1e-5 of one rank's, whatever the optimizer does with noise.
TEST(LossCurve, TwentyStepsAreThoseOfOneRank) {
  for (const char* name : {"five_heads", "window_8_of_2"}) {
    if (device_is_simulated() && name == std::string("window_8_of_2")) continue;
    const ModelConfig model = small_model(name);
    const std::int64_t steps = device_is_simulated() ? 8 : 20;
    const auto curve = [&](Trainer& trainer) {
      std::vector<double> losses;
      for (std::int64_t s = 0; s < steps; ++s) losses.push_back(trainer.step(s + 1, read_random(model, s % 2)).loss);
      return losses;
    };
    const std::vector<double> alone = curve(run_alone(model, safe_adamw(0.005))->trainer);
    EXPECT_LT(alone.back(), 0.9 * alone.front()) << "the model does not learn";
    for (const Layout& layout : layouts(world_size(), model)) {
      if (layout.micro_batch == 1) continue;  // many messages, and nothing that three steps have not shown
      if (device_is_simulated() && (layout.tensor == world_size() || layout.zero == 1))
        continue;  // golden_mpi_test.cpp
      SmallRun run(model, safe_adamw(0.005), layout);
      const std::vector<double> losses = curve(run.trainer);
      for (std::size_t s = 0; s < losses.size(); ++s)
        EXPECT_NEAR(losses[s], alone[s], 1e-5 * alone[s]) << name << ", " << layout.name << ", step " << s + 1;
    }
  }
}

}  // namespace
}  // namespace choir::tests
