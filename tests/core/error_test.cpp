// The text of errors.
#include "framework/core/error.h"

#include <gtest/gtest.h>

namespace choir::tests {
namespace {

TEST(Errors, SayWhatWhyAndHowToFix) {
  EXPECT_EQ(describe(Problem{.what = "a", .why = "b", .fix = "c"}), "a\n  why: b\n  fix: c");
  EXPECT_EQ(describe(Problem{.what = "a"}), "a");
  EXPECT_EQ(describe(std::vector<Problem>{{.what = "a", .fix = "c"}, {.what = "d"}}), "a\n  fix: c\nd");
}

TEST(Errors, OfConfigurationHoldAllProblems) {
  EXPECT_NO_THROW(throw_if_any({}));
  try {
    throw_if_any({{.what = "a"}, {.what = "b"}});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "a\nb");
    EXPECT_EQ(error.problems().size(), 2u);
  }
}

TEST(Errors, OfTheMachineSayWhere) {
  const int line = __LINE__ + 1;
  const Error error({.what = "a"});
  const std::string text = error.what();
  EXPECT_EQ(text.find("a\n  at:  "), 0u) << text;
  EXPECT_NE(text.find("error_test.cpp:" + std::to_string(line)), std::string::npos) << text;
}

TEST(ShellWord, IsOneWordForAShell) {
  EXPECT_EQ(shell_word("runs/a-1/step_2.h5"), "runs/a-1/step_2.h5");
  EXPECT_EQ(shell_word("my run"), "'my run'");
  EXPECT_EQ(shell_word("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(shell_word(""), "''");
}

TEST(Nearest, IsTheClosestNameOrNone) {
  const std::vector<std::string> names = {"steps", "batch", "precision", "seed"};
  EXPECT_EQ(nearest("step", names), "steps");
  EXPECT_EQ(nearest("precison", names), "precision");
  EXPECT_EQ(nearest("bathc", names), "batch");
  EXPECT_EQ(nearest("xyz", names), "");
  EXPECT_EQ(nearest("", names), "");
  EXPECT_EQ(nearest("steps", {}), "");
  EXPECT_EQ(nearest("steps", {"steps", "step"}), "step") << "the name itself is not a suggestion";
  EXPECT_EQ(nearest("steps", {"steps"}), "");
}

}  // namespace
}  // namespace choir::tests
