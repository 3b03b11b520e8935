// Overrides of the command line: section.key=value.
#include <gtest/gtest.h>

#include "framework/config/config.h"
#include "tests/config/problems.h"

namespace choir {
namespace {

using tests::contains;
using tests::problems_of;

TEST(Override, SetsAKeyOfAnyDepthOverTheFile) {
  const Config c = parse_config("train: {steps: 5}", "run.yaml",
                                {"train.steps=100", "model.attention.heads=8", "optimizer.betas=[0.8, 0.9]",
                                 "model.tied=false", "optimizer.rate=1e-3"});
  EXPECT_EQ(c.train.steps, 100);
  EXPECT_EQ(c.model.attention.heads, 8);
  EXPECT_EQ(c.optimizer.betas, (std::array<double, 2>{0.8, 0.9}));
  EXPECT_FALSE(c.model.tied);
  EXPECT_EQ(c.optimizer.rate, 1e-3);
}

TEST(Override, TheLastOneWins) { EXPECT_EQ(read_config("", {"train.steps=1", "train.steps=2"}).train.steps, 2); }

TEST(Override, TakesAWholeSection) {
  const Config c = read_config("", {"parallel={tensor: 2, zero: 1}"});
  EXPECT_EQ(c.parallel.tensor, 2);
  EXPECT_EQ(c.parallel.zero, 1);
}

TEST(Override, TextIsTakenAsItIs) {
  for (const std::string text : {"",
                                 " ",
                                 "null",
                                 "true",
                                 "\"Yes,\" he said",
                                 "\"Yes\"",
                                 "'it''s'",
                                 "[x",
                                 "# no comment",
                                 "a: b",
                                 "{a: b}",
                                 "- a",
                                 "&anchor",
                                 "*alias",
                                 "!tag",
                                 "%",
                                 "@",
                                 "`",
                                 "> a",
                                 "| a",
                                 "---",
                                 "...",
                                 "  both sides  ",
                                 "a = b = c",
                                 "And God said: #1 = [light]",
                                 "\\n \\x41 \\",
                                 "two\nlines\n",
                                 "\t\r\x01\x7f",
                                 "\xc3\xa9 \xf0\x9f\x8e\xb5"}) {
    const Config c =
        read_config("", {"generate.prompt=" + text, "data.path=" + text, "train.folder=" + text, "train.from=" + text});
    EXPECT_EQ(c.generate.prompt, text);
    EXPECT_EQ(c.data.path, text);
    EXPECT_EQ(c.train.folder, text);
    EXPECT_EQ(c.train.from, text);
  }
}

TEST(Override, OfOtherTypesIsYaml) {
  EXPECT_EQ(read_config("", {"train.steps= 5 # five"}).train.steps, 5);
  EXPECT_EQ(read_config("", {"generate={prompt: '\"it''s\"'}"}).generate.prompt, "\"it's\"");
  EXPECT_EQ(parse_config("generate: {prompt: \"two\\nlines\"}", "run.yaml").generate.prompt, "two\nlines");
}

TEST(Override, TextThatIsNotUtf8IsRefused) {
  for (const char* text : {"caf\xe9", "\x80", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\xff"}) {
    const std::string message = problems_of("{}", {std::string("data.path=") + text});
    EXPECT_TRUE(contains(message, "data.path is not UTF-8")) << message;
    EXPECT_TRUE(contains(problems_of(std::string("data: {path: ") + text + "}"), "run.yaml:1: data.path is not UTF-8"));
  }
}

TEST(Override, SaysWhatIsWrongWithTheOverrideAsWritten) {
  struct Case {
    const char* override;
    std::vector<const char*> parts;
  };
  const std::vector<Case> cases = {
      {"train.steps=abc",
       {"override train.steps=abc: train.steps is abc", "fix: give it such a value, as in train.steps=1000"}},
      {"train.steps=1e3", {"override train.steps=1e3: train.steps is 1e3", "fix: write train.steps=1000"}},
      {"train.step=10", {"override train.step=10: unknown key train.step", "did you mean train.steps?"}},
      {"steps=10", {"override steps=10: unknown key steps", "did you mean train.steps?"}},
      {"train=10", {"override train=10: train is 10", "train is a section"}},
      {"train.steps.x=10",
       {"unknown key train.steps.x", "steps in train is a value, not a section", "did you mean train.steps?"}},
      {"train..steps=10", {"unknown key train..steps", "did you mean train.steps?"}},
      {"model.atention.heads=8", {"model has no key atention", "did you mean model.attention.heads?"}},
      {"model.atention.qqqqqq=8", {"model has no key atention", "did you mean model.attention?"}},
      {"qqqqqqqq.rrrrrrrr=8",
       {"the configuration has no key qqqqqqqq", "the keys of the configuration are model, data"}},
      {"train.steps=", {"override train.steps=: train.steps is empty"}},
      {"train.steps", {"override \"train.steps\" is not of the form section.key=value", "train.steps=100"}},
      {"=3", {"override \"=3\" is not of the form section.key=value"}},
      {"train.steps=[1", {"override train.steps=[1: not valid YAML", "close its quotes and brackets"}},
      {"parallel={tensor: 2, tensor: 3}", {"parallel.tensor is given twice"}},
  };
  for (const Case& c : cases) {
    const std::string message = problems_of("train: {batch: 4}", {c.override});
    for (const char* part : c.parts)
      EXPECT_TRUE(contains(message, part)) << "override: " << c.override << "\nwants: " << part << "\ngot:\n"
                                           << message;
  }
}

}  // namespace
}  // namespace choir
