#include "framework/train/progress.h"

#include <gtest/gtest.h>

namespace choir {
namespace {

const StepReport report{.step = 120,
                        .steps = 600,
                        .loss = 4.123,
                        .rate = 1.9e-3,
                        .gradient_norm = 0.81,
                        .tokens_per_second = 12345,
                        .share_of_peak = 0.71,
                        .memory_bytes = 600'000'000,
                        .seconds_left = 65};

TEST(ProgressLine, DropsItsFieldsInOrderOfImportanceUntilItFits) {
  const std::string whole =
      "step 120/600  loss 4.1230  rate 1.90e-03  norm 0.810  12345 tok/s  71 % of peak  0.60 GB  1:05 left";
  EXPECT_EQ(format(report, std::string::npos), whole);
  EXPECT_EQ(format(report, whole.size()), whole);
  EXPECT_EQ(format(report, whole.size() - 1),
            "step 120/600  loss 4.1230  rate 1.90e-03  norm 0.810  12345 tok/s  71 % of peak  1:05 left");
  EXPECT_EQ(format(report, 79), "step 120/600  loss 4.1230  rate 1.90e-03  norm 0.810  12345 tok/s  1:05 left");
  EXPECT_EQ(format(report, 75), "step 120/600  loss 4.1230  norm 0.810  12345 tok/s  1:05 left");
  EXPECT_EQ(format(report, 55), "step 120/600  loss 4.1230  12345 tok/s  1:05 left");
  EXPECT_EQ(format(report, 39), "step 120/600  loss 4.1230  1:05 left");
  EXPECT_EQ(format(report, 30), "step 120/600  loss 4.1230");
  EXPECT_EQ(format(report, 20), "step 120/600");
  EXPECT_EQ(format(report, 9), "step 120/");
}

TEST(ProgressLine, FitsEveryWidthAndBeginsWithTheStep) {
  const std::string counter = "step 120/600";
  for (std::size_t width = 1; width <= 200; ++width) {
    EXPECT_LE(format(report, width).size(), width);
    EXPECT_TRUE(format(report, width).starts_with(counter.substr(0, width))) << format(report, width);
  }
}

TEST(ProgressLine, LeavesOutAShareOfPeakThatIsNotKnownOrAboveOne) {
  StepReport other = report;
  for (const double share : {0.0, 2.54}) {
    other.share_of_peak = share;
    EXPECT_EQ(format(other, std::string::npos).find("peak"), std::string::npos);
  }
  other.share_of_peak = 1;
  EXPECT_NE(format(other, std::string::npos).find("100 % of peak"), std::string::npos);
}

}  // namespace
}  // namespace choir
