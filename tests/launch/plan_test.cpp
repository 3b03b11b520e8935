// choir plan: what it says of each stage.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(Plan, ShowsMemoryOperationsAndMessagesOfEachStage) {
  const Workshop shop;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") +
                                   " --ranks 6 parallel.pipeline=3 parallel.tensor=2 parallel.micro_batch=1");
  ASSERT_EQ(plan.code, 0) << plan.output;
  std::istringstream lines(plan.output.substr(plan.output.find("each stage: ")));
  std::string line;
  std::getline(lines, line);
  std::getline(lines, line);
  for (const char* column : {"stage", "parameters", "gradients", "optimizer state", "saved activations", "workspace",
                             "temporaries", "total", "TFLOP", "messages", "sent GB"})
    EXPECT_NE(line.find(column), std::string::npos) << column << "\n" << plan.output;
  for (int stage = 0; stage < 3; ++stage) {
    std::getline(lines, line);
    std::istringstream words(line);
    std::vector<double> numbers;
    for (double number = 0; words >> number;) numbers.push_back(number);
    ASSERT_EQ(numbers.size(), 11u) << plan.output;
    EXPECT_EQ(numbers[0], stage);
    EXPECT_GT(numbers[9], 0) << "messages, in\n" << plan.output;
  }
}

}  // namespace
}  // namespace choir::tests
