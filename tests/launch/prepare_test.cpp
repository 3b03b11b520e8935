// choir prepare, and what training makes of its token files: any text comes back, what is not text is refused, a
// tokenizer is taken from wherever it is, files are replaced whole, and a file that is written to in use is found out.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>

#include "framework/data/file.h"
#include "framework/data/token_file.h"
#include "tests/data/corpus.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

std::string text_of(const std::string& path) {
  const TokenFile file(path);
  file.verify();
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.num_tokens()));
  file.read(0, tokens);
  return file.tokenizer().decode(tokens);
}

class PrepareCommand : public ::testing::Test {
 protected:
  std::string input(const std::string& name, const std::string& text) const {
    write_file(shop_.path(name), text);
    return shop_.path(name);
  }
  std::string prepare_words(const std::string& arguments) const {
    return "prepare " + shop_.path("tiny.yaml") + " " + arguments;
  }
  Finished prepare(const std::string& arguments) const { return shop_.choir(prepare_words(arguments)); }

  const Workshop shop_;
  const std::string sentencepiece_ =
      " data.tokenizer.kind=sentencepiece data.tokenizer.vocabulary=300 model.vocabulary=320 ";
};

TEST_F(PrepareCommand, TextWithoutSpacesTrainsATokenizerAndIsDecoded) {
  std::mt19937 random(1);
  std::string base64, genome;
  for (int i = 0; i < 40000; ++i)
    base64 += "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[random() % 64];
  for (int i = 0; i < 300000; ++i) genome += "acgt"[random() % 4];
  for (const std::string& text : {random_text(5000, 1) + base64 + "\n" + random_text(5000, 2), genome}) {
    const Finished prepared = prepare(input("long.txt", text) + sentencepiece_);
    ASSERT_EQ(prepared.code, 0) << prepared.output;
    EXPECT_TRUE(text_of(shop_.path("tokens.h5")) == text);
  }
}

TEST_F(PrepareCommand, BinaryFilesAreRefusedWithoutTheBinaryOption) {
  const std::string text = input("book.txt", "a book\n");
  ASSERT_EQ(shell("gzip -k " + text + " && iconv -f UTF-8 -t UTF-16 " + text + " > " + shop_.path("wide.txt")).code, 0);
  const std::string before = read_file(shop_.path("tokens.h5"));
  const std::string files = text + " " + text + ".gz " + shop_.path("wide.txt");
  const Finished refused = prepare(files);
  EXPECT_EQ(refused.code, 2);
  EXPECT_TRUE(contains(refused, "text = " + text + ".gz: this looks like gzip data")) << refused.output;
  EXPECT_TRUE(contains(refused, "gzip -dc " + text + ".gz > ")) << refused.output;
  EXPECT_TRUE(contains(refused, "text = " + shop_.path("wide.txt") + ": this looks like text in UTF-16"));
  EXPECT_TRUE(contains(refused, "choir prepare --binary"));
  EXPECT_EQ(read_file(shop_.path("tokens.h5")), before);
  const Finished insisted = prepare("--binary " + files);
  EXPECT_EQ(insisted.code, 0) << insisted.output;
  EXPECT_TRUE(contains(insisted, text + ".gz: looks like gzip data, prepared as it is")) << insisted.output;
  EXPECT_EQ(text_of(shop_.path("tokens.h5")),
            read_file(text) + read_file(text + ".gz") + read_file(shop_.path("wide.txt")));
}

TEST_F(PrepareCommand, PeculiaritiesOfATextAreNoted) {
  const std::string lines = input("lines.jsonl", "{\"text\": \"a\"}\r\n{\"text\": \"b\"}\r\n"),
                    latin = input("latin.txt", "caf\xE9\n"), marked = input("marked.txt", "\xEF\xBB\xBFtext\n");
  const Finished prepared = prepare(lines + " " + latin + " " + marked + " " + latin);
  EXPECT_EQ(prepared.code, 0);
  for (const std::string& note :
       {lines + ": looks like JSON lines", lines + ": 2 of 2 lines end in CRLF",
        latin + ": bytes that are not UTF-8: 1, the first at byte 3", marked + ": begins with a byte-order mark",
        latin + ": is named twice: it may be both trained on and held out"})
    EXPECT_TRUE(contains(prepared, note)) << note << "\n" << prepared.output;
}

TEST_F(PrepareCommand, SeveralAtOnceLeaveTheFileOfOneOfThemWhole) {
  std::string commands;
  std::set<std::string> texts;
  for (unsigned i = 0; i < 8; ++i) {
    texts.insert(random_text(200000 + 1000 * i, i));
    const std::string text = input("own-" + std::to_string(i), random_text(200000 + 1000 * i, i));
    commands += "( " CHOIR_BINARY " " + prepare_words(text + " data.path=" + shop_.path("shared.h5")) +
                " ) & jobs=\"$jobs $!\"; ";
  }
  const Finished all = shell(commands + "for job in $jobs; do wait $job || exit 1; done");
  EXPECT_EQ(all.code, 0) << all.output;
  EXPECT_EQ(texts.count(text_of(shop_.path("shared.h5"))), 1u);
  EXPECT_EQ(shell("ls -A " + shop_.folder() + " | grep choir-").output, "");
}

TEST_F(PrepareCommand, RemainsOfAKilledOneAreRemovedByTheNext) {
  const std::string left = input("tokens.h5.choir-0123456789abcdef.tmp", "half a file");
  const Finished prepared = prepare(shop_.path("text-0"));
  EXPECT_EQ(prepared.code, 0);
  EXPECT_TRUE(contains(prepared, "removed " + left)) << prepared.output;
  EXPECT_FALSE(std::filesystem::exists(left));
}

TEST_F(PrepareCommand, ATokenizerIsTakenFromAModelATokenFileACheckpointOrARun) {
  const std::string tokens = shop_.path("pieces.h5"), words = sentencepiece_ + " data.path=" + tokens;
  ASSERT_EQ(prepare(input("first.txt", random_text(30000, 1)) + words).code, 0);
  const Tokenizer tokenizer = TokenFile(tokens).tokenizer();
  const std::string model = input("pieces.model", tokenizer.serialized()), run = shop_.path("run");
  const Finished trained = shop_.train(1, "run", words + " train.steps=2");
  ASSERT_EQ(trained.code, 0) << trained.output;
  const std::string second = input("second.txt", random_text(20000, 2));
  for (const std::string& given : {model, tokens, run, run + "/checkpoints/step-00000002"}) {
    const Finished prepared =
        prepare(second + words + " data.path=" + shop_.path("second.h5") + " data.tokenizer.model=" + given);
    ASSERT_EQ(prepared.code, 0) << prepared.output;
    EXPECT_EQ(TokenFile(shop_.path("second.h5")).tokenizer().digest(), tokenizer.digest()) << given;
    std::filesystem::remove(shop_.path("second.h5"));
  }
  const Finished refused = prepare(second + words + " data.tokenizer.model=" + second);
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "fix: name a .model file of spm_train, a token file, a checkpoint or a run"))
      << refused.output;
}

// The error names the command that fixes it.
TEST_F(PrepareCommand, TextForACheckpointIsPreparedByTheCommandThatTheErrorNames) {
  ASSERT_EQ(shop_.train(1, "run", "train.steps=2").code, 0);
  const std::string other = input("other.txt", random_text(30000, 1)), path = shop_.path("other.h5");
  ASSERT_EQ(prepare(other + sentencepiece_ + "data.path=" + path).code, 0);
  const Finished refused = shop_.choir("evaluate " + shop_.path("run") + " data.path=" + path);
  EXPECT_EQ(refused.code, 2);
  const std::string begin = "choir prepare CONFIG text files ... data.tokenizer.model=";
  const std::size_t at = refused.output.find(begin);
  ASSERT_NE(at, std::string::npos) << refused.output;
  std::string checkpoint;
  std::istringstream(refused.output.substr(at + begin.size())) >> checkpoint;
  const Finished prepared = prepare(other + " data.tokenizer.model=" + checkpoint + " data.path=" + path);
  ASSERT_EQ(prepared.code, 0) << prepared.output;
  const Finished evaluated = shop_.choir("evaluate " + shop_.path("run") + " data.path=" + path);
  EXPECT_EQ(evaluated.code, 0) << evaluated.output;
}

TEST_F(PrepareCommand, AGivenTokenizerIsComparedWithTheConfiguration) {
  const std::string tokens = shop_.path("pieces.h5"), text = input("first.txt", random_text(30000, 1));
  ASSERT_EQ(prepare(text + sentencepiece_ + "data.path=" + tokens).code, 0);
  const std::string given = text + " data.path=" + shop_.path("new.h5") + " data.tokenizer.model=" + tokens + " ";
  const std::pair<std::string, std::string> cases[] = {
      {"", " was made with data.tokenizer.kind = sentencepiece, not bytes"},
      {"data.tokenizer.kind=sentencepiece", "model.vocabulary = 257 is less than the 300 tokens of "},
      {"data.tokenizer.kind=sentencepiece model.vocabulary=400 data.tokenizer.vocabulary=400",
       " was made with data.tokenizer.vocabulary = 300, not 400"}};
  for (const auto& [words, error] : cases) {
    const Finished refused = prepare(given + words);
    EXPECT_EQ(refused.code, 2);
    EXPECT_TRUE(contains(refused, error)) << refused.output;
    EXPECT_TRUE(contains(refused, "data.tokenizer.model = " + tokens)) << refused.output;
  }
  EXPECT_EQ(prepare(given + "data.tokenizer.kind=sentencepiece model.vocabulary=300").code, 0);
}

TEST_F(PrepareCommand, TheHeldOutShareIsTheRequestedOneForFilesOfAnySizes) {
  input("small.txt", random_text(2000, 1));
  for (const char* name : {"large.txt", "large2.txt", "large3.txt"}) input(name, random_text(195000, 2));
  for (const std::string files : {"small.txt large.txt", "large.txt small.txt", "large.txt large2.txt large3.txt"}) {
    ASSERT_EQ(shell("cd " + shop_.folder() + " && " CHOIR_BINARY " " + prepare_words(files)).code, 0);
    const std::string run = "run-" + std::to_string(files.size()) + files.substr(0, 1);
    const Finished trained = shop_.train(1, run, "data.held_out=0.05 train.steps=2");
    ASSERT_EQ(trained.code, 0) << trained.output;
    const std::size_t at = trained.output.find("tokens.h5: ");
    ASSERT_NE(at, std::string::npos) << trained.output;
    long long tokens = 0, for_training = 0;
    ASSERT_EQ(
        std::sscanf(trained.output.c_str() + at, "tokens.h5: %lld tokens, %lld for training", &tokens, &for_training),
        2);
    const double share = static_cast<double>(tokens - for_training) / static_cast<double>(tokens);
    EXPECT_GE(share, 0.05) << files;
    EXPECT_LE(share, 0.075) << files;
  }
}

class TokenFileOfARunningJob : public PrepareCommand {
 protected:
  /// Trains in the run folder `run`; when a checkpoint has been saved, stops the job, runs `change` and continues it.
  Finished train_and(const std::string& run, const std::string& arguments, const std::string& change) const {
    const std::string folder = shop_.path(run);
    const std::string command = shop_.train_command_alone(run, arguments);
    return shell("( " + command + " ) & job=$!; while kill -0 $job && ! [ -e " + folder +
                 "/checkpoints/step-00000005 ]; do sleep 0.05; done; kill -STOP $job; " + change +
                 "; kill -CONT $job; wait $job");
  }
  /// Expects whole checkpoints, from which the run continues with the old token file.
  void expect_resumes(const std::string& run) const {
    const Finished verified =
        shell("for step in " + shop_.path(run) +
              "/checkpoints/step-*[0-9]; do " CHOIR_BINARY " checkpoint verify $step || exit 1; done");
    EXPECT_EQ(verified.code, 0) << verified.output;
    ASSERT_EQ(shell("cat " + shop_.path("kept.h5") + " > " + shop_.path("tokens.h5")).code, 0);
    const Finished resumed = shop_.train(1, run, "checkpoint.keep=0 train.steps=7 --resume");
    EXPECT_TRUE(contains(resumed, "after step")) << resumed.output;
  }
  void SetUp() override {
    ASSERT_EQ(shell("cp " + shop_.path("tokens.h5") + " " + shop_.path("kept.h5")).code, 0);
    ASSERT_EQ(
        prepare(shop_.path("text-4") + " " + shop_.path("text-[0-3]") + " data.path=" + shop_.path("other.h5")).code,
        0);
    ASSERT_EQ(std::filesystem::file_size(shop_.path("other.h5")), std::filesystem::file_size(shop_.path("kept.h5")));
  }
  const std::string endless_ = "train.steps=100000000 checkpoint.keep=0";
};

TEST_F(TokenFileOfARunningJob, CutEndsTheRunWithTheLastCheckpointWhole) {
  const Finished ended = train_and("run", endless_, "cat " + shop_.path("text-0") + " > " + shop_.path("tokens.h5"));
  EXPECT_EQ(ended.code, 1) << ended.output;
  EXPECT_TRUE(contains(ended, "token file " + shop_.path("tokens.h5") + " was written to while it was in use"))
      << ended.output;
  expect_resumes("run");
}

TEST_F(TokenFileOfARunningJob, ReplacedInPlaceByOtherTokensEndsTheRunWithTheLastCheckpointWhole) {
  const Finished ended =
      train_and("run", endless_, "dd conv=notrunc if=" + shop_.path("other.h5") + " of=" + shop_.path("tokens.h5"));
  EXPECT_EQ(ended.code, 1) << ended.output;
  EXPECT_TRUE(contains(ended, "token file " + shop_.path("tokens.h5") + " was written to while it was in use"))
      << ended.output;
  EXPECT_TRUE(contains(ended, "the digest of its tokens is")) << ended.output;
  expect_resumes("run");
}

TEST_F(TokenFileOfARunningJob, ReplacedByChoirPrepareIsStillTheOldOneForTheRun) {
  ASSERT_EQ(shop_.train(1, "undisturbed", "train.steps=20").code, 0);
  const Finished ended =
      train_and("run", "train.steps=20",
                "touch " + shop_.path("tokens.h5") + "; " CHOIR_BINARY " " + prepare_words(shop_.path("text-0")));
  EXPECT_EQ(ended.code, 0) << ended.output;
  EXPECT_TRUE(contains(ended, "tokens.h5: 1 document")) << ended.output;
  EXPECT_EQ(shop_.metric("run", "loss"), shop_.metric("undisturbed", "loss"));
}

}  // namespace
}  // namespace choir::tests
