// What all verbs have in common: the words of the command line, and output.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

TEST(CommandLine, TextIsTakenAsItIs) {
  const Workshop shop;
  for (const std::string text : {"\"Yes,\" he said", "[x", "# no comment", "a: b", "  both sides ", "\"all\""}) {
    const std::string word = "'generate.prompt=" + text + "'";
    EXPECT_EQ(shop.choir("config " + shop.path("tiny.yaml") + " " + word + " --get generate.prompt").output,
              text + "\n");
    ASSERT_EQ(shop.choir("config " + shop.path("tiny.yaml") + " " + word + " > " + shop.path("printed.yaml")).code, 0);
    EXPECT_EQ(shop.choir("config " + shop.path("printed.yaml") + " --get generate.prompt").output, text + "\n");
  }
  ASSERT_EQ(shop.train(1, "run", "train.steps=1 optimizer.warmup=0 'generate.prompt=\"Yes,\" he'").code, 0);
  for (const char* word : {"", " 'generate.prompt=\"Yes,\" he'"}) {
    const Finished finished = shop.choir("generate " + shop.path("run") + word);
    EXPECT_EQ(finished.code, 0) << finished.output;
    EXPECT_EQ(finished.output.rfind("\"Yes,\" he", 0), 0u) << finished.output;
  }
  const Finished latin1 = shop.train(1, "latin1", "generate.prompt=caf$(printf '\\351')");
  EXPECT_EQ(latin1.code, 2) << latin1.output;
  EXPECT_TRUE(contains(latin1, "generate.prompt is not UTF-8")) << latin1.output;
}

TEST(CommandLine, ADashBeginsAnArgumentAfterTwoDashes) {
  const Workshop shop;
  fs::copy_file(shop.path("text-0"), shop.path("-dash.txt"));
  fs::copy_file(shop.path("text-0"), shop.path("train"));
  const std::string here =
      "cd " + shop.folder() + " && OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " CHOIR_BINARY;
  for (const std::string words : {"tiny.yaml -- -dash.txt", "tiny.yaml text-1 -- -dash.txt train",
                                  "tiny.yaml data.path=new.h5 -- -dash.txt", "-- tiny.yaml text-1 -dash.txt"}) {
    const Finished finished = shell(here + " prepare " + words);
    EXPECT_EQ(finished.code, 0) << words << "\n" << finished.output;
  }
  const Finished without = shell(here + " prepare tiny.yaml -dash.txt");
  EXPECT_EQ(without.code, 2);
  EXPECT_TRUE(contains(without, "write -- before names that begin with a dash: choir prepare ... -- -dash.txt"))
      << without.output;
  const Finished missing = shell(here + " prepare tiny.yaml -- -none.txt");
  EXPECT_EQ(missing.code, 2);
  EXPECT_TRUE(contains(missing, "-none.txt")) << missing.output;
  EXPECT_EQ(missing.output.find('\x01'), std::string::npos) << missing.output;
}

TEST(CommandLine, AResultThatCannotBeWrittenIsAFailure) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run").code, 0);
  const std::string config = shop.path("tiny.yaml"), run = shop.path("run");
  for (const std::string& words :
       {"config " + config, "config " + config + " --get train.steps", "plan " + config + " --ranks 2",
        "plan " + config + " --ranks 2 --json", "train " + config + " --dry-run", "evaluate " + run + " --json",
        "generate " + run, "checkpoint list " + run, "checkpoint verify " + run, "checkpoint show " + run,
        "checkpoint export " + run + " " + shop.path("one.h5"), "calls " + run, "verify " + config,
        "prepare " + config + " " + config, "doctor " + shop.path("runs"), std::string("--help"),
        std::string("train --help"), std::string("--version")}) {
    const Finished finished = shop.choir(words + " >/dev/full");
    EXPECT_EQ(finished.code, 1) << words << "\n" << finished.output;
    EXPECT_EQ(count(finished, "standard output cannot be written\n  why: "), 1u)
        << words << "\n"
        << finished.output;
  }
}

TEST(CommandLine, TrainingDoesNotDependOnItsOutput) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  const Workshop shop;
  const Finished finished = shell(shop.train_command_alone("run", ">/dev/full"));
  EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_TRUE(contains(finished, "lines of standard output are lost: ")) << finished.output;
  EXPECT_EQ(shop.metric("run", "loss").size(), 10u);
}

TEST(CommandLine, JsonIsValidWhateverAPathHolds) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run").code, 0);
  const std::string name = shop.path("a \"b\" \\c\n\xe9");
  fs::rename(shop.path("run"), name);
  const Finished finished = shop.choir("evaluate '" + name + "' --json");
  ASSERT_EQ(finished.code, 0) << finished.output;
  const auto json = nlohmann::json::parse(finished.output, nullptr, false);
  ASSERT_TRUE(json.is_object()) << finished.output;
  EXPECT_EQ(json["checkpoint"].get<std::string>().rfind(shop.path("a \"b\" \\c\n"), 0), 0u) << finished.output;
  EXPECT_GT(json["bits_per_byte"].get<double>(), 0);
  EXPECT_TRUE(nlohmann::json::accept(shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 2 --json").output));
}

TEST(CommandLine, OneIsSingular) {
  const Workshop shop;
  const Finished prepared =
      shop.choir("prepare " + shop.path("tiny.yaml") + " " + shop.path("text-0") + " data.path=" + shop.path("one.h5"));
  EXPECT_TRUE(contains(prepared, ": 1 document, ")) << prepared.output;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") + " train.threads=1 --ranks 1");
  EXPECT_TRUE(contains(plan, " parameters on 1 rank: ")) << plan.output;
  EXPECT_TRUE(contains(plan, "planned for CPU ranks with 1 thread each")) << plan.output;
  const Finished verify = shop.choir("verify " + shop.path("tiny.yaml"));
  EXPECT_TRUE(contains(verify, " comparisons on 1 rank (")) << verify.output;
}

TEST(CommandLine, ADanglingLinkIsNamedAsSuch) {
  const Workshop shop;
  fs::create_symlink(shop.path("gone"), shop.path("link.h5"));
  fs::create_symlink(shop.path("gone"), shop.path("link.yaml"));
  const Finished tokens = shop.train(1, "run", "data.path=" + shop.path("link.h5"));
  EXPECT_EQ(tokens.code, 2);
  EXPECT_TRUE(contains(tokens, "link.h5: this is a link to " + shop.path("gone") + ", which is not there\n"))
      << tokens.output;
  const Finished config = shop.choir("config " + shop.path("link.yaml"));
  EXPECT_EQ(config.code, 2);
  EXPECT_TRUE(contains(config, "it is a link to " + shop.path("gone"))) << config.output;
  EXPECT_FALSE(contains(config, "there is link.yaml")) << config.output;
}

TEST(CommandLine, GenerateRunsInOneProcess) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", "train.steps=1 optimizer.warmup=0").code, 0);
  const Finished two = shop.mpirun(2, "generate " + shop.path("run"));
  EXPECT_EQ(two.code, 2) << two.output;
  EXPECT_TRUE(contains(two,
                       "choir: choir generate on 2 ranks\n  why: it runs in one process\n  fix: call it without "
                       "mpirun\n"))
      << two.output;
  EXPECT_FALSE(contains(two, "train.batch")) << two.output;
}

TEST(CommandLine, GenerateDrawsOnlyTokensOfTheTokenizer) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run", "train.steps=1 optimizer.warmup=0 model.vocabulary=4000").code, 0);
  std::size_t longest = 0;
  for (int seed = 1; seed <= 5; ++seed) {
    const Finished finished = shop.choir("generate " + shop.path("run") + " generate.prompt= generate.tokens=40 " +
                                         "generate.seed=" + std::to_string(seed));
    EXPECT_EQ(finished.code, 0) << finished.output;
    longest = std::max(longest, finished.output.size());
  }
  EXPECT_EQ(longest, 41u) << "one byte per token, and the end of the line";
}

}  // namespace
}  // namespace choir::tests
