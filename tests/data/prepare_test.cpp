// Text files become a token file that decodes to the same text; the memory for it does not grow with the files.
#include "framework/data/prepare.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <chrono>
#include <ctime>
#include <thread>

#include "framework/data/file.h"
#include "framework/data/token_file.h"
#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

class PrepareTest : public ::testing::Test {
 protected:
  std::string input(const std::string& name, const std::string& text) {
    write_file(folder_ / name, text);
    return folder_ / name;
  }
  PrepareResult run() {
    return prepare(options_, [this](const PrepareProgress& p) { progress_.push_back(p); });
  }
  std::string error() {
    return words_of<ConfigError>([this] { run(); });
  }

  std::string document(std::int64_t d) {
    const TokenFile file(options_.output);
    const std::int64_t first = file.document_offsets()[static_cast<std::size_t>(d)],
                       end = file.document_offsets()[static_cast<std::size_t>(d) + 1];
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(end - first));
    file.read(first, tokens);
    EXPECT_EQ(tokens.back(), file.tokenizer().end_of_document());
    return file.tokenizer().decode(tokens);
  }

  TemporaryFolder folder_;
  PrepareOptions options_{.inputs = {}, .output = folder_ / "corpus.h5", .tokenizer = tokenizer_config(500)};
  std::vector<PrepareProgress> progress_;
};

TEST_F(PrepareTest, EachFileIsADocumentAndDecodesToItself) {
  const std::vector<std::string> texts = {random_text(1500000, 1), random_bytes(300000, 2), std::string(1 << 20, '\n'),
                                          "short"};
  options_.tokenizer.sample_bytes = 500000;
  options_.binary = true;  // random bytes
  for (std::size_t i = 0; i < texts.size(); ++i) options_.inputs.push_back(input(std::to_string(i), texts[i]));
  for (const TokenizerKind kind : {TokenizerKind::bytes, TokenizerKind::sentencepiece}) {
    options_.tokenizer.kind = kind;
    const PrepareResult result = run();
    EXPECT_EQ(result.documents, 4);
    EXPECT_EQ(result.text_bytes, 1500000 + 300000 + (1 << 20) + 5);
    EXPECT_EQ(result.vocabulary, kind == TokenizerKind::bytes ? 257 : 500);
    for (std::size_t i = 0; i < texts.size(); ++i)
      EXPECT_TRUE(document(static_cast<std::int64_t>(i)) == texts[i]) << name_of(kind) << i;
    const TokenFile file(options_.output);
    file.verify();
    EXPECT_EQ(file.num_tokens(), result.tokens);
    EXPECT_EQ(file.text_bytes(), result.text_bytes);
    EXPECT_EQ(file.tokenizer().digest(), result.tokenizer_digest);
  }
  EXPECT_EQ(folder_.num_files(), texts.size() + 1);
}

TEST_F(PrepareTest, TheSameTextGivesTheSameBytes) {
  options_.inputs = {input("a", random_text(300000, 1)), input("b", random_text(100000, 2))};
  options_.tokenizer.sample_bytes = 200000;
  run();
  const std::string first = read_file(options_.output);
  options_.output = folder_ / "again.h5";
  for (const std::time_t before = std::time(nullptr); std::time(nullptr) == before;)  // a date would differ
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  run();
  EXPECT_TRUE(read_file(options_.output) == first);
}

TEST_F(PrepareTest, EmptyFilesAreLeftOutWithANote) {
  options_.inputs = {input("a", "text"), input("b", ""), input("c", "more")};
  options_.tokenizer.kind = TokenizerKind::bytes;
  const PrepareResult result = run();
  EXPECT_EQ(result.documents, 2);
  ASSERT_EQ(result.notes.size(), 1u);
  EXPECT_EQ(result.notes[0], (folder_ / "b") + ": is empty and makes no document");
  options_.inputs = {folder_ / "b"};
  expect_says(error(), "all files are empty");
}

TEST_F(PrepareTest, ProgressRisesToAll) {
  options_.inputs = {input("a", random_text(3000000, 1))};
  run();
  EXPECT_STREQ(progress_.front().stage, "training the tokenizer");
  EXPECT_STREQ(progress_.back().stage, "writing");
  EXPECT_EQ(progress_.back().bytes_done, 3000000);
  EXPECT_EQ(progress_.back().bytes_total, 3000000);
  for (std::size_t i = 1; i < progress_.size(); ++i) EXPECT_GE(progress_[i].tokens, progress_[i - 1].tokens);
  EXPECT_GE(progress_.size(), 5u);
}

// The second file has other letters: a tokenizer trained on the first alone would encode it as bytes.
TEST_F(PrepareTest, TheSampleIsTakenEvenlyOverTheFiles) {
  const std::string lower = random_text(1000000, 1);
  std::string upper = lower;
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  options_.inputs = {input("a", lower), input("b", upper)};
  options_.tokenizer.sample_bytes = 300000;
  run();
  const Tokenizer tokenizer = TokenFile(options_.output).tokenizer();
  const auto of_lower = static_cast<double>(tokenizer.encode(lower).size()),
             of_upper = static_cast<double>(tokenizer.encode(upper).size());
  EXPECT_NEAR(of_upper / of_lower, 1, 0.1);  // with one file alone it is 1.5 or more
}

TEST_F(PrepareTest, AGivenTokenizerIsUsed) {
  options_.given = Tokenizer::train(tokenizer_config(400), random_text(100000, 9));
  options_.inputs = {input("a", random_text(10000, 1))};
  EXPECT_EQ(run().tokenizer_digest, options_.given->digest());
  EXPECT_EQ(TokenFile(options_.output).tokenizer().digest(), options_.given->digest());
}

TEST_F(PrepareTest, BinaryFilesAreRefusedWithoutTheBinaryOption) {
  options_.tokenizer.kind = TokenizerKind::bytes;
  options_.inputs = {input("a.gz", "\x1F\x8B\x08 and so on"), input("plain", "text"),
                     input("wide", std::string("\xFF\xFEt\0e\0x\0t\0", 10)),
                     input("some data", std::string("a\0\0b\0\0", 6))};
  const std::string words = error();
  expect_says(words, "text = " + options_.inputs[0] + ": this looks like gzip data");
  expect_says(words, "gzip -dc " + options_.inputs[0] + " > " + options_.inputs[0] + ".txt");
  expect_says(words, "text = " + options_.inputs[2] + ": this looks like text in UTF-16");
  expect_says(words, "text = " + options_.inputs[3] + ": this looks like binary data");
  expect_says(words, "choir prepare --binary prepares it as it is");
  EXPECT_EQ(words.find(options_.inputs[1]), std::string::npos);
  options_.binary = true;
  const PrepareResult result = run();
  EXPECT_EQ(result.documents, 4);
  ASSERT_EQ(result.notes.size(), 3u);
  EXPECT_EQ(result.notes[0], options_.inputs[0] + ": looks like gzip data, prepared as it is");
  EXPECT_EQ(document(3), read_file(options_.inputs[3]));
}

TEST_F(PrepareTest, PeculiaritiesOfATextAreNoted) {
  options_.tokenizer.kind = TokenizerKind::bytes;
  options_.inputs = {input("a", "one\r\ntwo\r\n"), input("b", "plain"), input("c", "caf\xE9"),
                     input("d", "\xEF\xBB\xBFtext"), input("e", random_text(3 << 20, 1) + "\xE9 late")};
  const PrepareResult result = run();
  ASSERT_EQ(result.notes.size(), 4u);
  expect_says(result.notes[0], options_.inputs[0] + ": 2 of 2 lines end in CRLF, kept as it is");
  expect_says(result.notes[1], options_.inputs[2] + ": bytes that are not UTF-8: 1, the first at byte 3, kept");
  expect_says(result.notes[2], options_.inputs[3] + ": begins with a byte-order mark, kept");
  expect_says(result.notes[3], options_.inputs[4] + ": bytes that are not UTF-8: 1, the first at byte 3145728, kept");
  for (std::int64_t d = 0; d < 5; ++d)
    EXPECT_TRUE(document(d) == read_file(options_.inputs[static_cast<std::size_t>(d)]));
}

TEST_F(PrepareTest, ManyNotesOfAKindAreCounted) {
  options_.tokenizer.kind = TokenizerKind::bytes;
  for (int i = 0; i < 25; ++i) options_.inputs.push_back(input(std::to_string(i), std::to_string(i) + "\r\n"));
  const PrepareResult result = run();
  ASSERT_EQ(result.notes.size(), 11u);
  EXPECT_EQ(result.notes[10], "15 more files with CRLF line ends");
}

TEST_F(PrepareTest, TheSameTextTwiceIsNoted) {
  options_.tokenizer.kind = TokenizerKind::bytes;
  const std::string text = random_text(3000, 1), other = random_text(3000, 2);
  options_.inputs = {input("a", text), input("b", other), input("copy", text), folder_ / "b", folder_ / "link"};
  std::filesystem::create_hard_link(folder_ / "a", folder_ / "link");
  const PrepareResult result = run();
  EXPECT_EQ(result.documents, 5);
  ASSERT_EQ(result.notes.size(), 3u);
  EXPECT_EQ(result.notes[0], (folder_ / "copy") + ": has the same text as " + (folder_ / "a") +
                                 ": it may be both trained on and held out");
  expect_says(result.notes[1], (folder_ / "b") + ": is named twice");
  expect_says(result.notes[2], (folder_ / "link") + ": has the same text as " + (folder_ / "a"));
}

TEST_F(PrepareTest, RemainsOfAKilledOneAreRemovedAndAFileBeingWrittenStays) {
  options_.tokenizer.kind = TokenizerKind::bytes;
  options_.inputs = {input("a", "text")};
  const std::string stale = input("corpus.h5.choir-0123456789abcdef.tmp", "half a file");
  const std::string users = input("corpus.h5.choir-backup.tmp", "a file of the user");
  const std::string of_another = input("other.h5.choir-0123456789abcdef.tmp", "half a file");
  TemporaryFile in_use(options_.output);
  const PrepareResult result = run();
  ASSERT_EQ(result.notes.size(), 1u);
  EXPECT_EQ(result.notes[0], "removed " + stale + ", left by a choir prepare that was killed");
  EXPECT_FALSE(std::filesystem::exists(stale));
  EXPECT_TRUE(std::filesystem::exists(users));
  EXPECT_TRUE(std::filesystem::exists(of_another));
  EXPECT_TRUE(std::filesystem::exists(in_use.file().path()));
}

TEST_F(PrepareTest, AllProblemsAreNamedAtOnce) {
  options_.inputs = {folder_ / "absent", input("text", "some text"), folder_ / "", folder_ / "txt"};
  options_.output = folder_ / "no/such/folder.h5";
  const std::string words = error();
  expect_says(words, (folder_ / "absent") + ": there is no such file");
  expect_says(words, (folder_ / "") + ": this is a folder");
  expect_says(words, "did you mean " + (folder_ / "text") + "?");
  expect_says(words, "there is no folder " + (folder_ / "no/such"));
  options_ = PrepareOptions();
  expect_says(error(), "no text to prepare");
  expect_says(error(), "data.path is empty");
  expect_says(error(), "data.tokenizer.vocabulary = 0 is not a possible number of tokens");
}

TEST_F(PrepareTest, AFileThatIsNotATokenFileIsNotReplaced) {
  options_.inputs = {input("a", "some text")};
  options_.output = input("precious.txt", "precious");
  options_.tokenizer.kind = TokenizerKind::bytes;
  expect_says(error(), "it is not a token file");
  EXPECT_EQ(read_file(options_.output), "precious");
}

// The bytes that `prepare` adds to the peak of resident memory. It runs in a child process, whose peak is its own.
std::int64_t peak_growth(const PrepareOptions& options) {
  int channel[2];
  if (pipe(channel) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    const auto peak = [] {
      struct rusage usage = {};
      getrusage(RUSAGE_SELF, &usage);
      return static_cast<std::int64_t>(usage.ru_maxrss) << 10;
    };
    const std::int64_t before = peak();
    prepare(options, [](const PrepareProgress&) {});
    const std::int64_t growth = peak() - before;
    _exit(write(channel[1], &growth, sizeof(growth)) == sizeof(growth) ? 0 : 1);
  }
  std::int64_t growth = -1;
  close(channel[1]);
  if (read(channel[0], &growth, sizeof(growth)) != sizeof(growth)) growth = -1;
  close(channel[0]);
  waitpid(child, nullptr, 0);
  return growth;
}

TEST_F(PrepareTest, MemoryDoesNotGrowWithTheCorpus) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps freed memory";
#endif
  const std::string text = random_text(5000000, 1);
  options_.tokenizer.sample_bytes = 500000;
  std::string six;
  for (int i = 0; i < 6; ++i) six += text;
  const std::string small = input("small", text), large = input("large", six);
  six = {};
  for (const TokenizerKind kind : {TokenizerKind::bytes, TokenizerKind::sentencepiece}) {
    options_.tokenizer.kind = kind;
    options_.inputs = {small};
    const std::int64_t of_small = peak_growth(options_);
    options_.inputs = {large};
    const std::int64_t of_large = peak_growth(options_);
    ASSERT_GT(of_small, 0);
    EXPECT_LT(of_large, of_small + (4 << 20)) << name_of(kind);  // 25 MB more text
    RecordProperty(name_of(kind) + std::string("_bytes"), std::to_string(of_large));
  }
}

}  // namespace
}  // namespace choir::tests
