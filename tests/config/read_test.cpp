// Reading YAML: what is accepted, and one trigger for each message of the reader. To add a message, add a row to its
// table.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "framework/config/config.h"
#include "tests/config/problems.h"

namespace choir {
namespace {

using tests::contains;
using tests::problems_of;

TEST(ReadConfig, AnEmptyNameGivesTheDefaults) { EXPECT_EQ(read_config(""), Config{}); }

TEST(ReadConfig, ReadsEveryTypeOfValue) {
  const Config c = parse_config(R"(
model: {layers: 3, tied: false, dropout: .5, attention: {heads: +7, rotary_base: 5e5}}
data:
  path: a b/c.h5
  tokenizer:
    model: ''
train: {seed: 18446744073709551615, timeout: 1, folder:, from: 12}
optimizer: {rate: 6e-4, betas: [0.5, 1e-1]}
)",
                                "run.yaml");
  EXPECT_EQ(c.model.layers, 3);
  EXPECT_FALSE(c.model.tied);
  EXPECT_EQ(c.model.dropout, 0.5);
  EXPECT_EQ(c.model.attention.heads, 7);
  EXPECT_EQ(c.model.attention.rotary_base, 5e5);
  EXPECT_EQ(c.data.path, "a b/c.h5");
  EXPECT_EQ(c.data.tokenizer.model, "");
  EXPECT_EQ(c.train.seed, 18446744073709551615u);
  EXPECT_EQ(c.train.timeout, 1.0);
  EXPECT_EQ(c.train.folder, "");
  EXPECT_EQ(c.train.from, "12");
  EXPECT_EQ(c.optimizer.rate, 6e-4);
  EXPECT_EQ(c.optimizer.betas, (std::array<double, 2>{0.5, 0.1}));
  EXPECT_EQ(c.model.width, Config{}.model.width) << "what is not given stays at its default";
}

TEST(ReadConfig, AnchorsAndAliasesAreYaml) {
  const Config c = parse_config("model: {layers: &n 5, attention: {heads: *n}}", "run.yaml");
  EXPECT_EQ(c.model.attention.heads, 5);
}

TEST(ReadConfig, MarksOfTheDocumentAreYaml) {
  EXPECT_EQ(parse_config("\xef\xbb\xbf%YAML 1.2\n---\r\nmodel: {layers: 5}\r\n...\n", "run.yaml").model.layers, 5);
  EXPECT_EQ(parse_config("generate:\n  prompt: |\n    a\n    b", "run.yaml").generate.prompt, "a\nb\n");
}

struct Case {
  const char* text;
  std::vector<const char*> parts;  // all of them are in the message
};

TEST(ReadConfig, SaysWhatIsWrongWhereAndHowToFixIt) {
  const std::vector<Case> cases = {
      // unknown keys
      {"model:\n  layrs: 3",
       {"run.yaml:2: unknown key model.layrs", "model has no key layrs", "did you mean model.layers?"}},
      {"train: {rate: 1}", {"run.yaml:1: unknown key train.rate", "did you mean optimizer.rate?"}},
      {"optimiser: {rate: 1}",
       {"unknown key optimiser", "the configuration has no key optimiser", "did you mean optimizer?"}},
      {"layers: 3", {"unknown key layers", "did you mean model.layers?"}},
      {"train: {head: 3}", {"unknown key train.head", "did you mean model.attention.heads?"}},
      {"checkpoint: {sed: 3}", {"unknown key checkpoint.sed", "did you mean train.seed or generate.seed?"}},
      {"model: {kind: gelu}", {"model.feed_forward.kind or model.norm.kind or data.tokenizer.kind or optimizer.kind"}},
      {"checkpoint: {qqqqqqqq: 3}", {"unknown key checkpoint.qqqqqqqq", "the keys of checkpoint are every, keep"}},
      {"model.layers: 3", {"unknown key model.layers", "a dot is part of the name", "inside each other"}},
      {"\"a\\nb\": 3", {"unknown key \"a\\nb\""}},
      // wrong types
      {"model:\n  layers: twelve",
       {"run.yaml:2: model.layers is twelve", "takes integer >= 1: transformer blocks", "as in layers: 12"}},
      {"model: {layers: 1.5}", {"model.layers is 1.5", "integer >= 1"}},
      {"model: {layers: \"12\"}", {"model.layers is the text \"12\"", "fix: write layers: 12"}},
      {"model: {layers: 1_000}", {"model.layers is 1_000", "fix: write layers: 1000"}},
      {"train: {steps: 1e4}", {"train.steps is 1e4", "fix: write steps: 10000"}},
      {"model: {layers:}", {"model.layers is empty", "integer >= 1"}},
      {"model: {layers: [1]}", {"model.layers is a list"}},
      {"model: {layers: {a: 1}}", {"model.layers is a section"}},
      {"model: {layers: 9223372036854775808}", {"model.layers is 9223372036854775808", "integer"}},
      {"train: {seed: -1}", {"train.seed is -1", "integer >= 0"}},
      {"train: {timeout: .inf}", {"train.timeout is .inf", "number >= 0"}},
      {"train: {timeout: inf}", {"train.timeout is inf"}},
      {"train: {timeout: nan}", {"train.timeout is nan"}},
      {"train: {timeout: 1e999}", {"train.timeout is 1e999"}},
      {"train: {timeout: 10 s}", {"train.timeout is \"10 s\""}},
      {"model: {tied: yes}", {"model.tied is yes", "true | false", "fix: write tied: true"}},
      {"model: {tied: Off}", {"model.tied is Off", "fix: write tied: false"}},
      {"model: {tied: 2}", {"model.tied is 2", "true | false"}},
      {"data: {path: [a]}", {"data.path is a list", "data.path takes text"}},
      {"optimizer: {betas: 0.9}", {"optimizer.betas is 0.9", "two numbers in [0, 1)", "betas: [0.9, 0.95]"}},
      {"optimizer: {betas: [0.9]}", {"optimizer.betas is a list", "two numbers"}},
      {"optimizer: {betas: [0.9, x]}", {"optimizer.betas is a list", "two numbers"}},
      // sections
      {"model: 3", {"run.yaml:1: model is 3", "model is a section", "write model: {key: value, ...}"}},
      {"model:\ntrain: {steps: 1}", {"run.yaml:1: model is empty", "indented by two spaces, or delete the line"}},
      {"model: [layers, 3]", {"model is a list", "model is a section"}},
      {"model: {attention: 3}", {"model.attention is 3", "model.attention is a section"}},
      {"model: {? [a, b] : 3}", {"a key of model is a list", "a key is a name"}},
      // the whole file
      {"", {"run.yaml: the file is empty", "sections model, data, train, optimizer, parallel, checkpoint, generate"}},
      {"# nothing\n", {"the file is empty"}},
      {"3", {"run.yaml: the file is 3", "YAML map of the sections"}},
      {"- model", {"the file is a list"}},
      {"model: {layers: 3}\n---\ntrain: {steps: 4}",
       {"run.yaml:2: more text after the end of the configuration", "delete that line"}},
      {"model:\n\tlayers: 3", {"not valid YAML", "spaces, no tabs"}},
      {"model: {layers: 3\ntrain: {steps: 4}", {"run.yaml:2:6: not valid YAML: end of map flow not found"}},
      {"{model: {layers: 3}}, train", {"run.yaml:1: more text after the end", "check the brackets"}},
      {"generate:\n  prompt: \"In the\ntrain: {steps: 3}\n", {"not valid YAML: a quote opened above is not closed"}},
      {"generate: {prompt: 'In the", {"a quote opened above is not closed"}},
      {"model: *nothing", {"run.yaml:1:8: not valid YAML: the referenced anchor is not defined"}},
      // twice
      {"model:\n  layers: 3\n  layers: 4", {"run.yaml:3: model.layers is given twice", "it is also on line 2"}},
      {"train: {steps: 1}\ntrain: {batch: 2}", {"run.yaml:2: train is given twice", "it is also on line 1"}},
  };
  for (const Case& c : cases) {
    const std::string message = problems_of(c.text);
    for (const char* part : c.parts)
      EXPECT_TRUE(contains(message, part)) << "text:\n" << c.text << "\nwants: " << part << "\ngot:\n" << message;
  }
}

TEST(ReadConfig, ReportsAllProblemsAtOnce) {
  try {
    parse_config("model: {layrs: 3, width: wide}\ntrain: {steps: 1.5}", "run.yaml", {"train.batch=x", "nonsense"});
    FAIL() << "it was read";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.problems().size(), 5u) << error.what();
  }
}

TEST(ReadConfig, ReportsValuesOutsideTheirLimitsBesideWhatCannotBeRead) {
  const std::string message = problems_of("model: {layrs: 3, width: wide}\ntrain: {batch: -8, precision: bf61}");
  for (const char* part : {"unknown key model.layrs\n", "model.width is wide\n", "train.batch = -8 is out of range\n",
                           "train.precision = bf61 is not a known value\n"})
    EXPECT_TRUE(contains(message, part)) << message;
  EXPECT_FALSE(contains(message, "model.width =")) << "it was not read: its default stands there\n" << message;
}

TEST(ReadConfig, ShowsTheFirstOfVeryManyProblems) {
  std::string text = "model:\n";
  for (char c = 'a'; c <= 'z'; ++c) text += std::string("  x") + c + ": 1\n";
  const std::string message = problems_of(text);
  EXPECT_TRUE(contains(message, "unknown key model.xa\n")) << message;
  EXPECT_TRUE(contains(message, "and 6 more problems")) << message;
  EXPECT_FALSE(contains(message, "model.xz")) << message;
}

TEST(ReadConfig, ShortensLongValues) {
  const std::string message = problems_of("model: {layers: " + std::string(5000, 'x') + "}");
  EXPECT_TRUE(contains(message, "xxx\"...")) << message;
  EXPECT_LT(message.size(), 400u);
}

TEST(ReadConfig, ShowsNoControlCodesOfTheFile) {
  const std::string message = problems_of("model: {layers: \"\\x1b[2J\"}");
  EXPECT_TRUE(contains(message, "model.layers is the text \"\\x1b[2J\"")) << message;
  EXPECT_FALSE(contains(message, "\x1b")) << message;
}

TEST(ReadConfig, RefusesBinaryFiles) {
  EXPECT_TRUE(contains(problems_of(std::string("mod\0el: 3", 9)), "run.yaml: not a text file: byte 3 is zero"));
}

TEST(ReadConfig, RefusesHugeFiles) {
  EXPECT_TRUE(contains(problems_of(std::string((1 << 20) + 1, '#')), "run.yaml: more than 1048576 bytes"));
}

TEST(ReadConfig, DeepNestingIsAnError) {
  EXPECT_TRUE(contains(problems_of(std::string(100000, '[')), "not valid YAML: it is nested too deeply"));
  EXPECT_TRUE(contains(problems_of(std::string(100000, '{')), "not valid YAML: it is nested too deeply"));
  std::string flow = "model: ";
  for (int i = 0; i < 50000; ++i) flow += "{a: ";
  EXPECT_TRUE(contains(problems_of(flow), "not valid YAML: it is nested too deeply"));
}

// Aliases of aliases: 2^40 nodes if they were unfolded, and a node inside itself.
TEST(ReadConfig, AliasesAreNotUnfolded) {
  std::ostringstream text;
  text << "a0: &a0 [x, x]\n";
  for (int i = 1; i < 40; ++i) text << "a" << i << ": &a" << i << " [*a" << i - 1 << ", *a" << i - 1 << "]\n";
  EXPECT_TRUE(contains(problems_of(text.str()), "unknown key a0"));
  EXPECT_TRUE(contains(problems_of("&a {model: *a}"), "unknown key model.model"));
}

class ReadConfigFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("choir_config_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "quickstart.yaml") << "model: {layers: 3}\n";
    std::ofstream(folder_ / "gpt2-xl.yaml") << "model: {layers: [3]}\n";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string problem(const std::filesystem::path& file) const {
    try {
      read_config(file.string());
      return "";
    } catch (const ConfigError& error) {
      return error.what();
    }
  }
  std::filesystem::path folder_;
};

TEST_F(ReadConfigFile, ReadsAFile) { EXPECT_EQ(read_config((folder_ / "quickstart.yaml").string()).model.layers, 3); }

TEST_F(ReadConfigFile, NamesTheFileAsTheUserDid) {
  const std::string file = (folder_ / "gpt2-xl.yaml").string();
  EXPECT_TRUE(problem(file).starts_with(file + ":1: model.layers is a list")) << problem(file);
}

TEST_F(ReadConfigFile, AMissingFileNamesItsNeighbours) {
  const std::string message = problem(folder_ / "quikstart.yaml");
  EXPECT_TRUE(contains(message, "cannot read the configuration file " + (folder_ / "quikstart.yaml").string()))
      << message;
  EXPECT_TRUE(contains(message, "why: No such file or directory")) << message;
  EXPECT_TRUE(contains(message, "there is quickstart.yaml")) << message;
  EXPECT_TRUE(contains(problem(folder_ / "z"), "there is gpt2-xl.yaml, quickstart.yaml")) << problem(folder_ / "z");
}

TEST_F(ReadConfigFile, AMissingFolderIsNamed) {
  EXPECT_TRUE(contains(problem(folder_ / "no" / "x.yaml"), "there is no folder " + (folder_ / "no").string()));
}

TEST_F(ReadConfigFile, AFolderIsNotAFile) {
  EXPECT_TRUE(contains(problem(folder_), "why: it is a folder")) << problem(folder_);
  EXPECT_TRUE(contains(problem(folder_), "quickstart.yaml")) << problem(folder_);
}

}  // namespace
}  // namespace choir
