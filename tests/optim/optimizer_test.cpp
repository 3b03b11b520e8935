// The optimizer on a small store: the formulas of kernels/optimizer.h in double, decay only where a parameter decays,
// clipping by the global norm, padding left alone; sign steps apart from all that.
#include "framework/optim/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "framework/ops/elementwise.h"

namespace choir::tests {
namespace {

class OptimizerSteps : public ::testing::Test {
 protected:
  OptimizerSteps() : device(1), mesh(make_counting_mesh(0, {}, device, ring)), runtime{.device = device} {
    runtime.scalars = runtime.empty({sizeof(kernels::StepScalars)}, DType::u8);
    store.begin_group();
    matrix = store.add_weight(5, 7, true);  // its last row is padding
    store.add(
        {.name = "w", .shape = {4, 7}, .held = {0, 4, 0, 7}, .owned_end = 4, .initial = {0, 1}, .weight = matrix});
    bias = store.add_weight(7, 1, false);
    store.add({.name = "b",
               .shape = {7},
               .held = {0, 7, 0, 1},
               .owned_end = 7,
               .initial = {1, 0.1f},
               .decays = false,
               .weight = bias});
    router = store.add_weight(5, 1, false);
    store.add({.name = "r", .shape = {5}, .held = {0, 5, 0, 1}, .owned_end = 5, .sign_step = 0.25f, .weight = router});
  }

  /// Steps both the optimizer and the formula in double, with gradients that change from step to step.
  void expect_steps(const OptimizerConfig& config) {
    Context context{.runtime = runtime, .mesh = mesh};
    Shards shards(store, {}, context);
    Optimizer optimizer(config, store, shards, context);
    const auto master = [&](std::size_t flat) {
      const auto at = static_cast<std::int64_t>(flat);
      return *shards.at({at, at + 1}, &Bucket::master).data<float>();
    };
    const auto size = static_cast<std::size_t>(store.size());
    std::vector<double> weight(size), m(size), v(size), decay(size);
    for (std::size_t i = 0; i < size; ++i) weight[i] = master(i);
    for (std::size_t i = 0; i < 28; ++i) decay[i] = static_cast<float>(config.weight_decay);
    const auto is_parameter = [&](std::size_t i) {
      return i < 28 ||
             (static_cast<std::int64_t>(i) >= bias->offset && static_cast<std::int64_t>(i) < bias->offset + 7);
    };

    const auto is_router = [&](std::size_t i) {
      const auto at = static_cast<std::int64_t>(i);
      return router->offset <= at && at < router->offset + 5;
    };

    for (int step = 1; step <= 5; ++step) {
      double square = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const auto sine = static_cast<float>(std::sin(static_cast<double>(i) + 0.3 * step));
        const float g = is_parameter(i) ? sine : is_router(i) ? std::round(sine) * 50 : 100.0f;
        shards.gradients().data<float>()[i] = g;  // gradients of padding must not count
        if (is_parameter(i)) square += static_cast<double>(g) * g;
      }
      const double rate = 0.01 * step;
      const auto scalars = optimizer.scalars(step, rate);
      ops::upload(runtime, &scalars, runtime.scalars);
      double squared_norm = 0;
      ops::download(runtime, optimizer.step(context), &squared_norm);
      EXPECT_NEAR(squared_norm, square, 1e-12 * square);

      const double norm = std::sqrt(square), clip = config.clip > 0 && norm > config.clip ? config.clip / norm : 1;
      for (std::size_t i = 0; i < size; ++i) {
        if (is_router(i)) {
          const float g = shards.gradients().data<float>()[i];
          weight[i] -= 0.25 * ((g > 0) - (g < 0));
          ASSERT_EQ(master(i), weight[i]) << "sign step " << i;
          continue;
        }
        if (!is_parameter(i)) {
          ASSERT_EQ(master(i), 0) << "padding " << i;
          continue;
        }
        const double g = clip * static_cast<double>(shards.gradients().data<float>()[i]);
        if (config.kind == OptimizerKind::adamw) {
          m[i] = config.betas[0] * m[i] + (1 - config.betas[0]) * g;
          v[i] = config.betas[1] * v[i] + (1 - config.betas[1]) * g * g;
          const double m_hat = m[i] / (1 - std::pow(config.betas[0], step)),
                       v_hat = v[i] / (1 - std::pow(config.betas[1], step));
          weight[i] -= rate * (decay[i] * weight[i] + m_hat / (std::sqrt(v_hat) + config.epsilon));
        } else {
          m[i] = config.momentum * m[i] + g;
          weight[i] -= rate * (decay[i] * weight[i] + m[i]);
        }
        // A dozen roundings a step of a weight, and of an update that is no larger than rate * (1 + ...) < 1.
        ASSERT_NEAR(master(i), weight[i], 12 * step * 0x1p-24 * (1 + std::abs(weight[i]))) << i << ", step " << step;
      }
    }
    ASSERT_EQ(optimizer.state().size(), config.kind == OptimizerKind::adamw ? 2u : config.momentum > 0 ? 1u : 0u);
    if (config.kind == OptimizerKind::adamw) {
      EXPECT_NEAR(optimizer.state()[0].values.data<float>()[optimizer.state_offset(bias->offset + 2)],
                  m[static_cast<std::size_t>(bias->offset) + 2], 1e-6);
    }
  }

  CallRing ring;
  Device device;
  Mesh mesh;  // of one rank
  Runtime runtime;
  ParameterStore store;
  Weight* matrix = nullptr;
  Weight* bias = nullptr;
  Weight* router = nullptr;
};

TEST_F(OptimizerSteps, Adamw) { expect_steps({.kind = OptimizerKind::adamw, .weight_decay = 0.1, .clip = 0}); }
TEST_F(OptimizerSteps, AdamwClipped) {
  expect_steps({.kind = OptimizerKind::adamw, .epsilon = 1e-3, .weight_decay = 0.3, .clip = 0.5});
}
TEST_F(OptimizerSteps, ClipAboveTheNormDoesNothing) { expect_steps({.kind = OptimizerKind::adamw, .clip = 1000}); }
TEST_F(OptimizerSteps, Sgd) { expect_steps({.kind = OptimizerKind::sgd, .weight_decay = 0, .clip = 0}); }
TEST_F(OptimizerSteps, SgdWithMomentumDecayAndClip) {
  expect_steps({.kind = OptimizerKind::sgd, .momentum = 0.9, .weight_decay = 0.2, .clip = 1});
}

// What `choir plan` and the profile say of the norm: every rank squares its own part of the parameters, with or without
// ZeRO, and no padding.
TEST(GradientNorm, CostsTwoOperationsAParameterOverAllRanks) {
  constexpr int ranks = 3;
  constexpr std::int64_t parameters = 28;
  for (const int zero : {0, 1, 2, 3}) {
    Cost cost;
    for (int rank = 0; rank < ranks; ++rank) {
      CallRing ring;
      Device device(CountOnly{}, 1);
      Mesh mesh = make_counting_mesh(rank, {.data = ranks}, device, ring);
      Runtime runtime{.device = device, .scalars = {}};
      runtime.scalars = runtime.empty({sizeof(kernels::StepScalars)}, DType::u8);
      Context context{.runtime = runtime, .mesh = mesh};
      ParameterStore store;
      store.begin_group();
      Weight* matrix = store.add_weight(5, 7, true);  // its last row is padding
      store.add({.name = "w", .shape = {4, 7}, .held = {0, 4, 0, 7}, .owned_end = 4, .initial = {}, .weight = matrix});
      Shards shards(store, {.zero = zero}, context);
      Optimizer optimizer({}, store, shards, context);
      device.ledger().enabled = true;
      optimizer.step(context);
      for (const Ledger::Operation& operation : device.ledger().operations()) {
        if (operation.name != "gradient norm") continue;
        cost.flops += operation.cost.flops;
        cost.bytes += operation.cost.bytes;
      }
    }
    EXPECT_EQ(cost.flops, 2 * parameters) << "zero " << zero;
    EXPECT_EQ(cost.bytes, 4 * parameters) << "zero " << zero;
  }
}

}  // namespace
}  // namespace choir::tests
