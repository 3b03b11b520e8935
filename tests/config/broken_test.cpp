// Broken files, tests/config/broken/*.yaml: the first line of each is "# expect: " and a part of the message it must
// give.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "framework/config/config.h"
#include "tests/config/problems.h"

namespace choir {
namespace {

TEST(BrokenConfigs, EachGivesTheMessageItExpects) {
  const std::string mark = "# expect: ";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CHOIR_SOURCE_DIR "/tests/config/broken")) {
    std::string expected;
    std::ifstream stream(entry.path());
    std::getline(stream, expected);
    ASSERT_TRUE(expected.starts_with(mark)) << entry.path();
    expected = expected.substr(mark.size());
    EXPECT_GE(expected.size(), 12u) << entry.path() << " expects words that many messages have: " << expected;
    ++count;
    try {
      throw_if_any(validate(read_config(entry.path().string()), 4));
      ADD_FAILURE() << entry.path() << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_TRUE(tests::contains(error.what(), expected)) << entry.path() << "\nwants: " << expected << "\ngot:\n"
                                                           << error.what();
    }
  }
  EXPECT_GE(count, 20);
}

}  // namespace
}  // namespace choir
