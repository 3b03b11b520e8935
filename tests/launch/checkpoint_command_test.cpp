// choir checkpoint show prints the same for the same tensors, whatever layout wrote them.
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(CheckpointCommand, ShowsTheSameTensorsAlikeAfterEveryLayout) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", "train.steps=5 model.dropout=0").code, 0);
  // Steps that change no bit of a weight, in other layouts.
  const std::string still =
      "model.dropout=0 optimizer.kind=sgd optimizer.rate=1e-30 optimizer.weight_decay=0 optimizer.schedule=constant "
      "checkpoint.every=1 checkpoint.keep=0 --resume ";
  for (const auto& [ranks, words] : {std::pair{2, "train.steps=6 parallel.pipeline=2"},
                                     std::pair{4, "train.steps=7 parallel.zero=3"}, std::pair{1, "train.steps=8"}}) {
    const Finished run = shop.train(ranks, "run", still + words);
    ASSERT_EQ(run.code, 0) << run.output;
  }
  const auto weights_of = [&](const std::string& step) {  // lines of a digest, a shape and a name
    const Finished shown = shop.choir("checkpoint show " + shop.path("run/checkpoints/step-0000000" + step) +
                                      " | grep -E '^[0-9a-f]{16}' | grep -v optimizer");
    EXPECT_TRUE(contains(shown, "blocks.1.attention.q.weight")) << shown.output;
    return shown.output;
  };
  const std::string first = weights_of("5");
  for (const char* step : {"6", "7", "8"}) EXPECT_EQ(weights_of(step), first) << step;
}

}  // namespace
}  // namespace choir::tests
