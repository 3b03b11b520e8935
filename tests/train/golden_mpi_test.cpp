// Golden losses: the first 50 losses of a small model, as they were when written down. What changes them changed the
// model, the start values, the random numbers or the arithmetic; a refactoring does not.
//
// Bound: another number of ranks or another instruction set adds in another order, which moves a loss by
// 2 sqrt(2 k n) u = 2e-5 at most (framework/train/comparison.h), and AdamW with an epsilon far above the gradients'
// noise does not let the distance grow. The design promises 1e-5, which is the smaller one. The largest distance is
// recorded.
//
// A loss that is meant to change: copy the new ones from the failure's message into golden_losses.txt.
#include <gtest/gtest.h>

#include <fstream>
#include <iomanip>
#include <sstream>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

TEST(Golden, TheFirst50LossesAreThoseWrittenDown) {
  ModelConfig model = small_model("five_heads");
  model.initial_deviation = 0.1;
  model.dropout = 0.1;
  std::ifstream file(std::string(CHOIR_SOURCE_DIR) + "/tests/train/golden_losses.txt");
  std::vector<double> golden;
  for (double loss; file >> loss;) golden.push_back(loss);
  ASSERT_EQ(golden.size(), 50u);
  if (device_is_simulated()) golden.resize(10);

  const int ranks = world_size();
  for (const Layout& layout : {Layout{.name = "tensor, sequence", .tensor = ranks, .sequence = true},
                               Layout{.name = "data, zero 1", .data = ranks, .zero = 1}}) {
    SmallRun run(model, safe_adamw(0.003), layout);
    std::vector<double> losses;
    for (std::size_t s = 0; s < golden.size(); ++s) {
      const auto step = static_cast<std::int64_t>(s);
      losses.push_back(run.trainer.step(step + 1, read_random(model, step % 4)).loss);
    }
    std::ostringstream text;
    for (const double loss : losses) text << std::setprecision(9) << loss << '\n';
    double largest_distance = 0;
    for (std::size_t s = 0; s < losses.size(); ++s)
      largest_distance = std::max(largest_distance, std::abs(losses[s] - golden[s]) / golden[s]);
    RecordProperty(layout.name + ": largest distance", std::to_string(1e9 * largest_distance) + "e-9");
    for (std::size_t s = 0; s < losses.size(); ++s)
      ASSERT_NEAR(losses[s], golden[s], 1e-5 * golden[s]) << layout.name << ", step " << s + 1 << "; new losses:\n"
                                                          << text.str();
  }
}

}  // namespace
}  // namespace choir::tests
