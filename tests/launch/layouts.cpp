#include "tests/launch/layouts.h"

#include <gtest/gtest.h>

namespace choir::tests {

void expect_metrics_of_one_rank(const std::vector<LaunchLayout>& layouts, const std::vector<ComparedMetric>& metrics,
                                const std::string& words) {
  const Workshop shop;
  const Finished alone = shop.train(1, "one", words);
  ASSERT_EQ(alone.code, 0) << alone.output;
  for (const LaunchLayout& layout : layouts) {
    SCOPED_TRACE(layout.words);
    const Finished run = shop.train(layout.ranks, "many", words + " " + layout.words);
    ASSERT_EQ(run.code, 0) << run.output;
    for (const auto& [name, tolerance] : metrics) {
      ASSERT_FALSE(shop.metric("one", name).empty()) << name;
      expect_near(shop.metric("many", name), shop.metric("one", name), tolerance);
    }
    shell("rm -r " + shop.path("many"));
  }
}

void expect_checkpoints_to_cross(const LaunchLayout& written, const std::string& without, const LaunchLayout& resumed,
                                 const std::string& words) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one", words + " train.steps=5").code, 0);
  ASSERT_EQ(shop.train(written.ranks, "many", words + " train.steps=5 " + written.words).code, 0);
  for (const char* verb : {"checkpoint verify ", "generate ", "evaluate "}) {
    const Finished finished = shop.choir(verb + shop.path("many"));
    ASSERT_EQ(finished.code, 0) << finished.output;
  }
  const Finished one = shop.train(1, "many", words + " --resume " + without);
  ASSERT_EQ(one.code, 0) << one.output;
  const Finished many = shop.train(resumed.ranks, "one", words + " --resume " + resumed.words);
  ASSERT_EQ(many.code, 0) << many.output;
  ASSERT_EQ(shop.metric("one", "loss").size(), 10u);
  expect_near(shop.metric("many", "loss"), shop.metric("one", "loss"), relative);
}

void expect_exact_resume(const LaunchLayout& layout) {
  const Workshop shop;
  ASSERT_EQ(shop.train(layout.ranks, "whole", layout.words).code, 0);
  ASSERT_EQ(shop.train(layout.ranks, "two", layout.words + " train.steps=10 checkpoint.every=5").code, 0);
  shell("rm -r " + shop.path("two") + "/checkpoints/step-00000010");
  const Finished resumed = shop.train(layout.ranks, "two", layout.words + " --resume=5");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("two", "loss"), shop.metric("whole", "loss"));
}

}  // namespace choir::tests
