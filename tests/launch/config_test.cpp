// choir config reports what choir train would report for the same values, before a job waits in a queue.
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(ConfigCommand, RefusesWhatTrainRefusesInTheSameWords) {
  const Workshop workshop;
  for (const char* value : {"train.precision=fp16", "train.device=tpu", "optimizer.kind=adam", "optimizer.schedule=step",
                            "model.attention.position=sinus", "train.steps=0", "optimizer.rate=nan", "train.step=5",
                            "model.attention.kv_heads=2", "optimizer.warmup=11", "model.attention.heads=5"}) {
    SCOPED_TRACE(value);
    const std::string arguments = workshop.path("tiny.yaml") + " " + value;
    const Finished config = workshop.choir("config " + arguments), train = workshop.choir("train " + arguments);
    EXPECT_EQ(config.code, 2);
    EXPECT_EQ(train.code, 2);
    EXPECT_EQ(config.output, train.output);
  }
}

TEST(ConfigCommand, PrintsWhatAnotherMachineMayRun) {
  const Workshop workshop;
  const Finished config = workshop.choir("config " + workshop.path("tiny.yaml") + " train.precision=bf16");
  EXPECT_EQ(config.code, 0) << config.output;
  EXPECT_TRUE(contains(config, "precision: bf16")) << config.output;
}

}  // namespace
}  // namespace choir::tests
