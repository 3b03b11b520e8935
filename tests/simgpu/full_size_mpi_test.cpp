// GPT-2 124M at its full size on the GPU against the CPU: losses, every gradient, and what steps of SGD add to the
// weights, under the bounds of framework/train/comparison.h. On the simulated GPU, a model of the same kind with two
// layers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

struct Arithmetic {
  const char* name;
  Precision precision;
  AttentionImplementation attention;
};
void PrintTo(const Arithmetic& of, std::ostream* to) { *to << of.name; }

class FullSize : public ::testing::TestWithParam<Arithmetic> {};

TEST_P(FullSize, LossesGradientsAndStepsAreThoseOfTheCpu) {
  if (world_size() > 1) GTEST_SKIP() << "one rank is enough";
  const auto& [name, precision, attention] = GetParam();
  if (device_is_simulated() && attention == AttentionImplementation::cudnn)
    GTEST_SKIP() << "cuDNN does not run on the simulated GPU";
  const ModelConfig model = device_is_simulated() ? small_model("gpt") : ModelConfig{};  // whose defaults are GPT-2's
  Config config = small_config(model, plain_sgd(0.02), one_rank);
  config.train.batch = 4;
  config.train.precision = precision;
  const bool bf16 = precision == Precision::bf16;
  const double bound = rounding_bound(model, config.train.batch * model.context, bf16 ? DType::bf16 : DType::f32);
  const std::int64_t steps = device_is_simulated() ? 2 : 3;

  const int threads = device_is_simulated() ? 1 : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  SmallRun cpu(MPI_COMM_SELF, config, std::make_unique<Device>(threads));
  SmallRun gpu(MPI_COMM_SELF, config, std::make_unique<Device>(GpuOptions{.attention = attention}, 1));
  const Tensors start = cpu.masters();
  EXPECT_EQ(gpu.masters(), start);
  cpu.compute_gradients();
  gpu.compute_gradients();
  const double of_gradients = expect_holds(compare("gradient of ", cpu.gradients(), gpu.gradients(), bound));
  double of_losses = 0;
  for (std::int64_t s = 0; s < steps; ++s) {
    const double expected = cpu.step(s).loss, actual = gpu.step(s).loss;
    EXPECT_NEAR(actual, expected, expected * bound) << "step " << s + 1;
    of_losses = std::max(of_losses, std::abs(actual - expected) / expected);
  }
  const double of_steps = expect_holds(compare_updates("update of ", start, cpu.masters(), gpu.masters(), bound));
  std::printf("%s: losses are at most %.1e apart; of their bounds of %.1e, gradients use %.2f and updates %.2f\n", name,
              of_losses, bound, of_gradients, of_steps);
}

INSTANTIATE_TEST_SUITE_P(Gpt2, FullSize,
                         ::testing::Values(Arithmetic{"f32", Precision::f32, AttentionImplementation::flash},
                                           Arithmetic{"bf16, flash attention", Precision::bf16,
                                                      AttentionImplementation::flash},
                                           Arithmetic{"bf16, cuDNN", Precision::bf16, AttentionImplementation::cudnn}));

}  // namespace
}  // namespace choir::tests
