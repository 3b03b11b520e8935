// Golden losses: the first 50 losses of a small model, as they were when written down. What changes them changed the
// model, the start values, the random numbers or the arithmetic; a refactoring does not.
//
// Bound: every loss within the bound of losses in tests/support/rounding.h, for its own arithmetic, plus as much again
// for what 50 steps add: with AdamW at this rate and epsilon the distance between two runs that only round differently
// stays of the size of the first steps' (the parity test sees it shrink where the loss falls). It is below the 1e-5
// that the design allows after 20 steps of any layout.
//
// A loss that is meant to change: copy the new ones from the failure's message into golden_losses.txt.
#include <gtest/gtest.h>

#include <fstream>
#include <iomanip>
#include <sstream>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

TEST(Golden, the_first_50_losses_are_those_written_down) {
  ModelConfig model = small_model("five_heads");
  model.initial_deviation = 0.1;
  model.dropout = 0.1;
  std::ifstream file(std::string(CHOIR_SOURCE_DIR) + "/tests/train/golden_losses.txt");
  std::vector<double> golden;
  for (double loss; file >> loss;) golden.push_back(loss);

  const int ranks = world_size();
  for (const Layout& layout : {Layout{.name = "tensor, sequence", .tensor = ranks, .sequence = true},
                               Layout{.name = "data, zero 1", .data = ranks, .zero = 1}}) {
    SmallRun run(model, safe_adamw(0.003), layout);
    std::vector<double> losses;
    for (std::int64_t s = 0; s < 50; ++s) losses.push_back(run.trainer.step(s + 1, read_random(model, s % 4)).loss);
    std::ostringstream text;
    for (const double loss : losses) text << std::setprecision(9) << loss << '\n';
    ASSERT_EQ(golden.size(), losses.size()) << "new losses:\n" << text.str();
    for (std::size_t s = 0; s < losses.size(); ++s)
      ASSERT_NEAR(losses[s], golden[s], 1e-5 * golden[s]) << layout.name << ", step " << s + 1 << "; new losses:\n" << text.str();
  }
}

}  // namespace
}  // namespace choir::tests
