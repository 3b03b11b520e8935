// train.time_products: the fastest algorithm of each product is found, and all ranks take what rank 0 has found. The
// double of cuBLASLt says how long its algorithms compute.
#include <gtest/gtest.h>

#include <array>

#include "framework/train/timed_products.h"
#include "kernels/matmul_choices.h"
#include "tests/simgpu/cublas_lt.h"
#include "tests/simgpu/runtime.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

using Seconds = std::array<double, simgpu::num_algorithms>;

/// Number `fastest` takes a second, the others take two.
Seconds seconds_with(std::uint32_t fastest) {
  Seconds seconds;
  seconds.fill(2);
  seconds[fastest] = 1;
  return seconds;
}

/// The algorithms that step `index` uses.
std::uint32_t used_by_step(SmallRun& run, std::int64_t index) {
  simgpu::take_used_algorithms();
  run.step(index);
  run.device.synchronize();
  return simgpu::take_used_algorithms();
}

/// On a new GPU: the last one may report an error that a test before has planted.
class TimedProducts : public ::testing::Test {
 protected:
  TimedProducts() { simgpu::configure({}); }
};

TEST_F(TimedProducts, TheFastestOfRank0AreUsedByAllRanks) {
  constexpr std::uint32_t first = 0, fastest = 6, elsewhere = 2;
  const Layout layout{.name = "data", .data = world_size()};
  SmallRun run(small_model("gpt"), plain_sgd(0.1), layout);
  simgpu::set_algorithm_seconds(seconds_with(world_rank() == 0 ? fastest : elsewhere));
  EXPECT_EQ(used_by_step(run, 0), 1u << first);
  std::string report;
  const ProductChoices choices = time_products(run.trainer, report);
  EXPECT_NE(report.find("another algorithm than the library's first"), std::string::npos) << report;
  EXPECT_GT(choices.algorithms.size(), 8u);
  EXPECT_EQ(used_by_step(run, 1), 1u << fastest);

  // A run that goes on: what was stored is used.
  SmallRun other(small_model("gpt"), plain_sgd(0.1), layout);
  const ProductChoices stored = ProductChoices::parse(choices.text());
  EXPECT_EQ(stored.place, place_of_products(other.trainer));
  EXPECT_EQ(stored.algorithms, choices.algorithms);
  use_products(other.trainer, stored);
  EXPECT_EQ(used_by_step(other, 0), 1u << fastest);
}

// BGRADB does not go with it: then the gradients of biases are computed apart. What rounds parts is not taken.
TEST_F(TimedProducts, AnAlgorithmThatSplitsTheSumIsTakenIfItAddsInF32) {
  SmallRun run(small_model("gpt"), plain_sgd(0.1), {.name = "data", .data = world_size()});
  Seconds seconds;
  seconds.fill(4);
  seconds[simgpu::split_algorithm] = 2;
  seconds[simgpu::split_rounding] = 1;
  simgpu::set_algorithm_seconds(seconds);
  run.step(0);
  std::string report;
  const ProductChoices choices = time_products(run.trainer, report);
  std::size_t apart = 0;
  for (const auto& [product, algorithm] : choices.algorithms)
    if (algorithm == kernels::cuda::bias_gradient_apart) ++apart;
  EXPECT_GT(apart, 0u) << choices.text();
  EXPECT_EQ(used_by_step(run, 1), 1u << simgpu::split_algorithm);
  simgpu::set_algorithm_seconds({});
}

TEST_F(TimedProducts, ATextThatIsNoneHasNoChoices) {
  EXPECT_TRUE(ProductChoices::parse("").place.empty());
  EXPECT_TRUE(ProductChoices::parse("a GPU\nnonsense\n").place.empty());
}

}  // namespace
}  // namespace choir::tests
