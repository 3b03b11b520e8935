#include "framework/data/left_out.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace choir {
namespace {

TEST(LeftOut, TheOtherSamplesKeepTheirOrder) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    LeftOut left_out;
    std::set<std::int64_t> expected;
    for (int i = 0; i < round % 7; ++i) {
      const std::int64_t begin = static_cast<std::int64_t>(random() % 40),
                         end = begin + static_cast<std::int64_t>(random() % 9);
      left_out.add(begin, end);
      for (std::int64_t sample = begin; sample < end; ++sample) expected.insert(sample);
    }
    const std::int64_t first = static_cast<std::int64_t>(random() % 30);
    std::int64_t index = 0;
    for (std::int64_t sample = first; index < 60; ++sample)
      if (!expected.contains(sample)) {
        ASSERT_EQ(left_out.sample(first, index++), sample) << left_out.text();
      }
    EXPECT_EQ(LeftOut::parse(left_out.text()), left_out);
  }
}

TEST(LeftOut, IsTextWithRangesThatDoNotTouch) {
  LeftOut left_out;
  EXPECT_EQ(left_out.text(), "");
  left_out.add(12, 16);
  left_out.add(40, 44);
  left_out.add(16, 20);
  EXPECT_EQ(left_out.text(), "12-19 40-43");
  for (const char* wrong : {"12", "12-", "a", "12-19 ", "40-43 12-19", "19-12", "12-15 16-19"})
    EXPECT_FALSE(LeftOut::parse(wrong)) << wrong;
}

}  // namespace
}  // namespace choir
