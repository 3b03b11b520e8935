// A token file has the contents that were written. A broken one is an error with what, why and fix, never a crash.
#include "framework/data/token_file.h"

#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>

#include <chrono>
#include <numeric>

#include "framework/data/file_seal.h"
#include "framework/data/hdf5_file.h"
#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

class TokenFileTest : public ::testing::Test {
 protected:
  TokenFileTest() { write_documents(path_, {"In the beginning", "God", "", "created"}); }

  std::string open_error() {
    return words_of<ConfigError>([&] { TokenFile file(path_); });
  }

  // Changes the file through HDF5 and seals it again, so that only its contents are wrong.
  template <class Change>
  void change(Change&& call) {
    const FileSeal seal = check_seal(File::open(path_), token_file_kind);
    {
      const Hdf5Handle file(H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose, "H5Fopen");
      call(file);
    }
    const bool inside =
        seal.elements_offset + seal.elements_bytes <= std::filesystem::file_size(path_);  // false if they are cut off
    File file = File::edit(path_);
    write_seal(file, token_file_kind, inside ? seal.elements_offset : 512, inside ? seal.elements_bytes : 0);
  }

  void overwrite(std::uint64_t at, const std::string& bytes) {
    std::string all = read_file(path_);
    all.replace(at, bytes.size(), bytes);
    write_file(path_, all);
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "corpus.h5";
};

void replace_offsets(hid_t file, const std::vector<std::int64_t>& offsets) {
  const Hdf5Handle dataset(H5Dopen2(file, "document_offsets", H5P_DEFAULT), H5Dclose, "H5Dopen2");
  hdf5_check(H5Dwrite(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, offsets.data()), "H5Dwrite");
}

void replace_tokens(hid_t file, hid_t type, hsize_t count, H5D_layout_t layout, H5D_alloc_time_t allocation) {
  hdf5_check(H5Ldelete(file, "tokens", H5P_DEFAULT), "H5Ldelete");
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "H5Screate_simple");
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
  const hsize_t chunk = 4;
  H5Pset_layout(creation, layout);
  if (layout == H5D_CHUNKED) H5Pset_chunk(creation, 1, &chunk);
  H5Pset_alloc_time(creation, allocation);
  const Hdf5Handle dataset(H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
                           "H5Dcreate2");
}

void replace_attribute(hid_t file, const char* name, std::int64_t value) {
  hdf5_check(H5Adelete(file, name), "H5Adelete");
  write_attribute(file, name, value);
}

TEST_F(TokenFileTest, HoldsWhatWasWritten) {
  const TokenFile file(path_);
  EXPECT_EQ(file.num_documents(), 4);
  EXPECT_EQ(file.num_tokens(), 16 + 3 + 0 + 7 + 4);
  EXPECT_EQ(file.text_bytes(), 16 + 3 + 7);
  EXPECT_EQ(file.vocabulary(), 257);
  const std::vector<std::int64_t> offsets(file.document_offsets().begin(), file.document_offsets().end());
  EXPECT_EQ(offsets, (std::vector<std::int64_t>{0, 17, 21, 22, 30}));
  std::vector<std::int32_t> tokens(4);
  file.read(17, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{'G', 'o', 'd', 256}));
  file.verify();
  EXPECT_EQ(folder_.num_files(), 1u);
}

TEST_F(TokenFileTest, HoldsItsTokenizer) {
  const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(400), random_text(50000, 1));
  const std::string text = random_text(20000, 2);
  write_documents(path_, {text}, tokenizer);
  const TokenFile file(path_);
  EXPECT_EQ(file.tokenizer().digest(), tokenizer.digest());
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.num_tokens()));
  file.read(0, tokens);
  EXPECT_EQ(file.tokenizer().decode(tokens), text);
  file.verify();
}

// 70000 more pieces after those of a trained model; appending to a message of protocol buffers extends it.
TEST_F(TokenFileTest, WideVocabulariesTakeFourBytes) {
  std::string model = Tokenizer::train(tokenizer_config(400), random_text(50000, 1)).serialized();
  for (int i = 0; i < 70000; ++i) {
    const std::string piece = "<more " + std::to_string(100000 + i) + ">";                      // 13 bytes
    model += std::string("\x0A\x14\x0A\x0D") + piece + std::string("\x15\x00\x00\x80\xC7", 5);  // piece, score -65536
  }
  const Tokenizer tokenizer = Tokenizer::load("sentencepiece", model, "a model");
  ASSERT_EQ(tokenizer.vocabulary(), 70400);
  TokenFileWriter writer(path_, tokenizer);
  const std::vector<std::int32_t> written = {3, 70399, 65536, 400};
  writer.append(written);
  writer.end_document();
  writer.finish();
  const TokenFile file(path_);
  EXPECT_EQ(check_seal(File::open(path_), token_file_kind).elements_bytes, 20u);
  std::vector<std::int32_t> tokens(4);
  file.read(0, tokens);
  EXPECT_EQ(tokens, written);
  file.verify();
}

TEST_F(TokenFileTest, IsPlainHdf5WithALeadingBlockOfText) {
  EXPECT_EQ(read_file(path_).substr(0, 27), "choir token file, format 1\n");
  const Hdf5Handle file = open_hdf5(path_);
  const Hdf5Handle dataset(H5Dopen2(file, "tokens", H5P_DEFAULT), H5Dclose, "H5Dopen2");
  std::vector<std::int32_t> tokens(30);
  hdf5_check(H5Dread(dataset, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.data()), "H5Dread");
  EXPECT_EQ(Tokenizer::bytes().decode(tokens), "In the beginningGodcreated");
}

TEST_F(TokenFileTest, CopiesOutliveTheOriginal) {
  std::unique_ptr<TokenFile> original = std::make_unique<TokenFile>(path_);
  const TokenFile copy = *original;
  original.reset();
  std::vector<std::int32_t> tokens(1);
  copy.read(0, tokens);
  EXPECT_EQ(tokens[0], 'I');
}

TEST_F(TokenFileTest, MissingFilesNameTheNearest) {
  path_ = folder_ / "corpsu.h5";
  const std::string words = open_error();
  expect_says(words, "data.path = " + path_ + ": there is no such file");
  expect_says(words, "did you mean " + (folder_ / "corpus.h5") + "?");
  path_ = folder_ / "nowhere/corpus.h5";
  expect_says(open_error(), "there is no folder " + (folder_ / "nowhere"));
  path_ = folder_ / "";
  expect_says(open_error(), "this is a folder");
  path_ = "";
  expect_says(open_error(), "data.path is empty");
  path_ = "/dev/null";
  expect_says(open_error(), "not an ordinary file");
}

TEST_F(TokenFileTest, WhatIsNotATokenFileIsAnError) {
  write_file(path_, "In the beginning God created the heaven and the earth.\n");
  expect_says(open_error(), "this is not a token file");
  write_file(path_, "");
  expect_says(open_error(), "it is empty");
  create_hdf5(path_, 0, 1 << 16).close();
  expect_says(open_error(), "this is an HDF5 file, but not a token file");
}

TEST_F(TokenFileTest, AnotherFormatIsAnError) {
  overwrite(25, "7");
  expect_says(open_error(), "it is of format 7, and this Choir reads format 1");
}

TEST_F(TokenFileTest, ATruncatedFileIsAnErrorWithItsSizes) {
  const std::string all = read_file(path_);
  write_file(path_, all.substr(0, 1000));
  expect_says(open_error(), "truncated: it holds 1000 bytes, needs " + std::to_string(all.size()));
  write_file(path_, all.substr(0, 100));
  expect_says(open_error(), "truncated: it holds 100 bytes, and its leading block alone needs 512");
  write_file(path_, all + "more");
  expect_says(open_error(),
              "too long: it holds " + std::to_string(all.size() + 4) + " bytes, needs " + std::to_string(all.size()));
}

TEST_F(TokenFileTest, DamageIsAnError) {
  const std::string all = read_file(path_);
  overwrite(30, "X");
  expect_says(open_error(), "leading block is damaged");
  write_file(path_, all);
  overwrite(600, "X");
  expect_says(open_error(), "damaged: its bytes other than the tokens");
}

TEST_F(TokenFileTest, InconsistentPartsAreAnError) {
  const std::string all = read_file(path_);
  const auto error_after = [&](auto&& call) {
    write_file(path_, all);
    change(call);
    const std::string words = open_error();
    expect_says(words, "its parts do not fit together");
    expect_says(words, path_);
    return words;
  };
  expect_says(error_after([](hid_t f) { H5Ldelete(f, "tokens", H5P_DEFAULT); }), "'tokens' doesn't exist");
  expect_says(error_after([](hid_t f) { H5Ldelete(f, "token_bytes", H5P_DEFAULT); }), "'token_bytes' doesn't exist");
  expect_says(error_after([](hid_t f) { H5Adelete(f, "tokens_digest"); }), "'tokens_digest'");
  expect_says(error_after([](hid_t f) {
                replace_offsets(f, {0, 17, 17, 22, 30});
              }),
              "document 1 begins at token 17 and ends at token 17");
  expect_says(error_after([](hid_t f) {
                replace_offsets(f, {0, 17, 21, 22, 31});
              }),
              "the last document ends at token 31 of 30");
  expect_says(error_after([](hid_t f) { replace_offsets(f, {1, 17, 21, 22, 30}); }), "document 0 begins at token 1");
  expect_says(error_after([](hid_t f) {
                replace_offsets(f, {0, -5, 21, 22, 30});
              }),
              "document 0 begins at token 0 and ends at token -5");
  expect_says(error_after([](hid_t f) { replace_attribute(f, "format_version", 2); }), "format_version is 2");
  expect_says(error_after([](hid_t f) { replace_attribute(f, "end_of_document", 9); }),
              "256 to end a document, and 257 and 9 were written");
  expect_says(error_after([](hid_t f) { replace_attribute(f, "tokenizer_digest", 2); }),
              "'tokenizer_digest' is of another type");
  expect_says(error_after([](hid_t f) {
                H5Adelete(f, "tokenizer_digest");
                write_attribute(f, "tokenizer_digest", std::string("0123456789abcdef"));
              }),
              "and 0123456789abcdef was written");
  expect_says(
      error_after([](hid_t f) { replace_tokens(f, H5T_STD_U16LE, 1ull << 60, H5D_CONTIGUOUS, H5D_ALLOC_TIME_LATE); }),
      "dataset of 1152921504606846976 elements does not lie within the file");
  expect_says(error_after([](hid_t f) { replace_tokens(f, H5T_STD_U16LE, 30, H5D_CHUNKED, H5D_ALLOC_TIME_EARLY); }),
              "not contiguous");
  expect_says(error_after([](hid_t f) { replace_tokens(f, H5T_IEEE_F32LE, 30, H5D_CONTIGUOUS, H5D_ALLOC_TIME_EARLY); }),
              "integers");
  expect_says(error_after([](hid_t f) { replace_tokens(f, H5T_STD_U16BE, 30, H5D_CONTIGUOUS, H5D_ALLOC_TIME_EARLY); }),
              "little-endian");
  expect_says(error_after([](hid_t f) { replace_tokens(f, H5T_STD_U16LE, 29, H5D_CONTIGUOUS, H5D_ALLOC_TIME_EARLY); }),
              "the leading block says");
}

TEST_F(TokenFileTest, AFlippedTokenIsFoundByVerify) {
  const FileSeal seal = check_seal(File::open(path_), token_file_kind);
  overwrite(seal.elements_offset, "J");
  const TokenFile file(path_);
  expect_says(words_of<ConfigError>([&] { file.verify(); }), "its tokens are damaged");
}

TEST_F(TokenFileTest, AnIdBeyondTheVocabularyIsFoundWhenRead) {
  const FileSeal seal = check_seal(File::open(path_), token_file_kind);
  overwrite(seal.elements_offset + 2 * 5 + 1, "\x02");  // token 5, 'e', becomes 512 + 'e'
  const TokenFile file(path_);
  std::vector<std::int32_t> tokens(10);
  const std::string expected = "token 5 is " + std::to_string(512 + 'e') + ", beyond its vocabulary of 257 tokens";
  expect_says(words_of<ConfigError>([&] { file.read(0, tokens); }), expected);
  expect_says(words_of<ConfigError>([&] { file.verify(); }), expected);
  file.read(6, tokens);
}

TEST_F(TokenFileTest, AModelNeedsAsManyTokens) {
  const TokenFile file(path_);
  ModelConfig model;
  model.vocabulary = 257;
  EXPECT_TRUE(check_fits(file, model, {.kind = TokenizerKind::bytes}).empty());
  model.vocabulary = 256;
  const std::vector<Problem> problems = check_fits(file, model, {.kind = TokenizerKind::bytes});
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].what, "model.vocabulary = 256 is less than the 257 tokens of data.path = " + path_);
}

TEST_F(TokenFileTest, TheConfigurationNamesItsTokenizer) {
  const TokenFile file(path_);
  const auto what_of = [&](const TokenizerConfig& tokenizer) {
    const std::vector<Problem> problems = check_fits(file, {.vocabulary = 1000}, tokenizer);
    return problems.empty() ? "" : problems[0].what;
  };
  EXPECT_EQ(what_of({.kind = TokenizerKind::bytes, .vocabulary = 257}), "");
  EXPECT_EQ(what_of({.kind = TokenizerKind::sentencepiece}),
            "data.path = " + path_ + " was made with data.tokenizer.kind = bytes, not sentencepiece");
  EXPECT_EQ(what_of({.kind = TokenizerKind::bytes, .vocabulary = 1000}),
            "data.path = " + path_ + " was made with data.tokenizer.vocabulary = 257, not 1000");
}

TEST_F(TokenFileTest, AnotherTokenizerIsAnErrorWithTheCommandThatUsesTheRightOne) {
  const TokenFile file(path_);
  EXPECT_TRUE(check_tokenizer(file, Tokenizer::bytes().digest(), "run/checkpoints/step-1").empty());
  const std::vector<Problem> problems = check_tokenizer(file, "0123456789abcdef", "my run/checkpoints/step-1");
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].what, "data.path = " + path_ + " was made by tokenizer " + Tokenizer::bytes().digest() +
                                  ", and the checkpoint my run/checkpoints/step-1 by tokenizer 0123456789abcdef");
  expect_says(problems[0].fix,
              "choir prepare CONFIG text files ... data.tokenizer.model='my run/checkpoints/step-1' data.path=");
}

class TokenFileInUse : public TokenFileTest {
 protected:
  // Its last change is long ago: a second change within one tick of the file system's clock would not change the time.
  TokenFileInUse() {
    std::filesystem::last_write_time(path_, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  }

  std::string text_of(const TokenFile& file) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.num_tokens()));
    file.read(0, tokens);
    return file.tokenizer().decode(tokens);
  }
  std::string read_error(const TokenFile& file) {
    return words_of<Error>([&] { text_of(file); });
  }
  const std::string text_ = "In the beginningGodcreated";
};

TEST_F(TokenFileInUse, CutIsAnError) {
  const TokenFile file(path_), copy = file;
  const std::string size = std::to_string(std::filesystem::file_size(path_));
  for (const std::uintmax_t left : {1000, 0}) {
    std::filesystem::resize_file(path_, left);
    for (const TokenFile& each : {file, copy}) {
      expect_says(read_error(each), "token file " + path_ + " was written to while it was in use");
      expect_says(read_error(each), "it had " + size + " bytes, and has " + std::to_string(left) + " now");
    }
  }
}

TEST_F(TokenFileInUse, OtherTokensInPlaceAreAnError) {
  const TokenFile file(path_);
  write_documents(folder_ / "other.h5", {"In the beginning", "God", "", "Created"});
  const std::string other = read_file(folder_ / "other.h5");
  ASSERT_EQ(other.size(), std::filesystem::file_size(path_));
  EXPECT_EQ(text_of(file), text_);
  overwrite(0, other);
  expect_says(read_error(file), "was written to while it was in use");
  expect_says(read_error(file), "and was " + file.tokens_digest() + " when the file was opened");
}

TEST_F(TokenFileInUse, TheSameBytesAgainAreNotAnError) {
  const TokenFile file(path_);
  std::filesystem::last_write_time(path_, std::filesystem::file_time_type::clock::now());
  EXPECT_EQ(text_of(file), text_);
  overwrite(0, read_file(path_));
  EXPECT_EQ(text_of(file), text_);
}

// choir prepare replaces a token file in this way.
TEST_F(TokenFileInUse, RenamingAnotherOverItChangesNothing) {
  const TokenFile file(path_);
  write_documents(path_, {"others"});
  EXPECT_EQ(text_of(file), text_);
  EXPECT_EQ(text_of(TokenFile(path_)), "others");
}

// A limit on file sizes stands in for a full disk. Whichever step fails, the old file stays.
TEST_F(TokenFileTest, AFullDiskIsAnErrorAndLeavesNothing) {
  const std::string before = read_file(path_), text = random_text(50000, 1);
  struct rlimit old = {};
  getrlimit(RLIMIT_FSIZE, &old);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {0, 100, 700, 1500, 3000, 5000, 60000, 100000, 101000, 103000}) {
    struct rlimit small = {.rlim_cur = limit, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const std::string words = words_of<Error>([&] { write_documents(path_, {text}); });
    setrlimit(RLIMIT_FSIZE, &old);
    expect_says(words, "cannot write " + (folder_ / ""));
    expect_says(words, "fix: free space there, or write elsewhere");
    EXPECT_EQ(read_file(path_), before);
    EXPECT_EQ(folder_.num_files(), 1u);
  }
  signal(SIGXFSZ, handler);
  write_documents(path_, {text});
  TokenFile(path_).verify();
}

TEST_F(TokenFileTest, AnUnfinishedWriterLeavesNothing) {
  {
    TokenFileWriter writer(folder_ / "other.h5", Tokenizer::bytes());
    writer.append(Tokenizer::bytes().encode(random_text(3000000, 1)));
  }
  EXPECT_EQ(folder_.num_files(), 1u);
}

// Flips bits of a valid file and truncates it: it opens and reads, or is an error. CHOIR_FUZZ_SECONDS, 2 by default.
TEST_F(TokenFileTest, FuzzedFilesOpenOrSayWhatIsWrong) {
  write_documents(path_, {"In the beginning", "God created"},
                  Tokenizer::train(tokenizer_config(300), random_text(20000, 1)));
  const std::string valid = read_file(path_);
  const char* setting = std::getenv("CHOIR_FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(setting ? std::atof(setting) : 2);
  std::mt19937 random(1);
  int opened = 0, refused = 0;
  while (std::chrono::steady_clock::now() < end) {
    std::string bytes = valid;
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    for (unsigned flips = random() % 4; flips > 0 && !bytes.empty(); --flips) {
      const std::size_t range = random() % 2 ? std::min<std::size_t>(bytes.size(), 512) : bytes.size();
      bytes[random() % range] ^= static_cast<char>(1u << random() % 8);
    }
    write_file(path_, bytes);
    try {
      const TokenFile file(path_);
      ++opened;
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.num_tokens()));
      file.read(0, tokens);
      file.tokenizer().decode(tokens);
      file.verify();
      EXPECT_EQ(bytes.substr(0, 512), valid.substr(0, 512));
    } catch (const ConfigError&) {
      ++refused;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(opened, 0);
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace choir::tests
