// Any bytes survive encode and decode; training and streaming are deterministic; broken models are errors.
#include "framework/data/tokenizer.h"

#include <algorithm>
#include <set>

#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

const Tokenizer& trained() {
  static const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(600), random_text(300000, 1));
  return tokenizer;
}

std::vector<std::string> hard_texts() {
  std::vector<std::string> texts = {"",
                                    " ",
                                    "\n",
                                    "\n\n\n",
                                    "  two  spaces  ",
                                    " \n \n",
                                    "\r\n\ttab",
                                    "In the beginning\nGod created\n",
                                    std::string("\0a\0", 3),
                                    "caf\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x8E\xB6",
                                    "literal \xE2\x96\x81 and \xE2\x96\x85 and \xEF\xBF\xBD",
                                    "\xE2\x96\x81",
                                    "\xFF\xFE",
                                    "cut \xE2\x96",
                                    "\xC0\x80 overlong \xED\xA0\x80 surrogate \xF4\x90\x80\x80",
                                    "<s></s><unk><0x0A>",
                                    "1234567890",
                                    std::string(200000, 'a'),
                                    std::string(200000, ' '),
                                    std::string(70000, '\xE2') + "\xE4\xB8\xAD"};
  std::string chinese;
  while (chinese.size() < 150000) chinese += "\xE4\xB8\xAD\xE6\x96\x87";  // one word, cut between characters
  texts.push_back(chinese);
  for (unsigned seed = 0; seed < 20; ++seed) texts.push_back(random_bytes(seed * 97, seed));
  for (unsigned seed = 0; seed < 5; ++seed) texts.push_back(random_text(5000, 100 + seed));
  return texts;
}

void expect_lossless(const Tokenizer& tokenizer) {
  for (const std::string& text : hard_texts()) {
    const std::vector<std::int32_t> tokens = tokenizer.encode(text);
    EXPECT_TRUE(tokenizer.decode(tokens) == text) << "text of " << text.size() << " bytes: " << text.substr(0, 40);
    std::int64_t bytes = 0;
    for (const std::int32_t token : tokens) bytes += tokenizer.byte_length(token);
    EXPECT_EQ(bytes, static_cast<std::int64_t>(text.size()));
    EXPECT_EQ(std::ranges::count(tokens, tokenizer.end_of_document()), 0);
  }
}

TEST(Tokenizer, BytesAreTheirOwnTokens) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.vocabulary(), 257);
  EXPECT_EQ(tokenizer.end_of_document(), 256);
  EXPECT_EQ(tokenizer.byte_length(256), 0);
  EXPECT_EQ(tokenizer.encode("a\xFF"), (std::vector<std::int32_t>{'a', 255}));
  expect_lossless(tokenizer);
}

TEST(Tokenizer, SentencePieceIsLosslessForAnyBytes) { expect_lossless(trained()); }

TEST(Tokenizer, SentencePieceShortensText) {
  const std::string text = random_text(50000, 2);
  EXPECT_LT(trained().encode(text).size(), text.size() * 3 / 4);
  EXPECT_EQ(trained().vocabulary(), 600);
}

TEST(Tokenizer, ALineBreakAndADigitAreSeparateTokens) {
  EXPECT_EQ(trained().encode("\n\n").size(), 2u);
  EXPECT_EQ(trained().encode("2024").size(), 4u);
}

TEST(Tokenizer, TrainingIsDeterministicAndLoadingIsLossless) {
  const std::string sample = random_text(100000, 3);
  const Tokenizer a = Tokenizer::train(tokenizer_config(500), sample),
                  b = Tokenizer::train(tokenizer_config(500), sample);
  EXPECT_EQ(a.serialized(), b.serialized());
  EXPECT_EQ(a.digest(), b.digest());
  const Tokenizer c = Tokenizer::load("sentencepiece", a.serialized(), "a file");
  EXPECT_EQ(c.digest(), a.digest());
  EXPECT_EQ(c.serialized(), a.serialized());
  const std::string text = random_text(20000, 4) + random_bytes(2000, 5);
  EXPECT_EQ(c.encode(text), a.encode(text));
  EXPECT_NE(Tokenizer::train(tokenizer_config(501), sample).digest(), a.digest());
  EXPECT_NE(Tokenizer::bytes().digest(), a.digest());
}

// The words before the cut are encoded, the rest is passed again: the tokens do not depend on where the text was cut.
TEST(Tokenizer, StreamedTokensAreThoseOfTheWhole) {
  for (const Tokenizer& tokenizer : {Tokenizer::bytes(), trained()}) {
    for (const std::string& text : hard_texts()) {
      const std::vector<std::size_t> short_pieces = {1, 7, 1000}, long_pieces = {9999, 65537};
      const std::vector<std::int32_t> expected = tokenizer.encode(text);
      for (const std::size_t piece : text.size() < 6000 ? short_pieces : long_pieces) {
        WordCache cache;
        std::vector<std::int32_t> tokens;
        std::string rest;
        for (std::size_t at = 0; at <= text.size(); at += piece) {
          rest += text.substr(at, piece);
          rest.erase(0, tokenizer.encode_words(rest, at + piece > text.size(), cache, tokens));
          ASSERT_LE(rest.size(), Tokenizer::max_word_bytes);
        }
        EXPECT_TRUE(rest.empty());
        EXPECT_TRUE(tokens == expected) << text.size() << " bytes in pieces of " << piece;
      }
    }
  }
}

TEST(Tokenizer, TheTrainingSampleMayHoldAnyBytes) {
  const std::string sample = random_text(100000, 4) + random_bytes(20000, 5) + std::string(1000, '\0') +
                             "\xE2\x96\x81\n" + random_text(100000, 6);
  const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(700), sample);
  EXPECT_EQ(tokenizer.vocabulary(), 700);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(sample)), sample);
}

std::string random_letters(std::size_t count, const std::string& letters, unsigned seed) {
  std::mt19937 random(seed);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) text += letters[random() % letters.size()];
  return text;
}

// SentencePiece crashes on words of 32768 characters, and ends the process on words of 65536 or more.
TEST(Tokenizer, LongWordsTrainATokenizerAndAreDecoded) {
  const std::string base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string greek;
  for (const char letter : random_letters(70000, "abcdefgh", 1)) {
    greek += '\xCE';
    greek += static_cast<char>(letter + 0x50);  // U+03B1 to U+03B8
  }
  const std::string before = random_text(20000, 1), after = std::string("\n") + random_text(20000, 2);
  for (const std::string& text : {random_letters(40000, base64, 1), random_letters(300000, "acgt", 2),
                                  before + random_letters(32768, base64, 3) + after,
                                  before + random_letters(65536, base64, 4) + after, before + greek + after}) {
    const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(500), text);
    EXPECT_EQ(tokenizer.vocabulary(), 500);
    const std::vector<std::int32_t> tokens = tokenizer.encode(text);
    EXPECT_TRUE(tokenizer.decode(tokens) == text) << text.size();
    EXPECT_LT(tokens.size(), text.size()) << text.size();
  }
}

// Pieces of 1024 characters: every second one is used, since 512 are allowed. Only the others contain "zq".
TEST(Tokenizer, APartOfLongWordsIsUsedWhichBoundsTheTimeOfTraining) {
  std::string word;
  for (unsigned piece = 0; piece < 601; ++piece) word += random_letters(1024, piece % 2 == 0 ? "acgt" : "zq", piece);
  const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(400), word);
  EXPECT_LT(tokenizer.encode("acgtacgt").size(), 8u);
  EXPECT_EQ(tokenizer.encode("zqzqzqzq").size(), 8u);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(word)), word);
}

// 3000 different characters and 400 tokens: the frequent ones get tokens, the others are encoded as bytes.
TEST(Tokenizer, RareCharactersDoNotFillTheVocabulary) {
  std::string sample = random_text(100000, 7);
  for (int code = 0x4E00; code < 0x4E00 + 3000; ++code) {
    sample += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
               static_cast<char>(0x80 | (code & 0x3F))};
  }
  const Tokenizer tokenizer = Tokenizer::train(tokenizer_config(400), sample);
  EXPECT_EQ(tokenizer.vocabulary(), 400);
  EXPECT_EQ(tokenizer.encode("\xE5\xA6\xB7").size(), 3u);
  const std::string text = random_text(10000, 8);
  EXPECT_LT(tokenizer.encode(text).size(), text.size() * 4 / 5);
}

TEST(Tokenizer, ASampleTooSmallForTheVocabularyIsAnError) {
  const std::string words = words_of<ConfigError>([] { Tokenizer::train(tokenizer_config(5000), "a few words\n"); });
  expect_says(words, "data.tokenizer.vocabulary = 5000");
  expect_says(words, "sample of 12 bytes");
  expect_says(words, "Vocabulary size too high");
  expect_says(words_of<ConfigError>([] { Tokenizer::train(tokenizer_config(100), random_text(1000, 1)); }),
              "data.tokenizer.vocabulary = 100 is too small");
  expect_says(words_of<ConfigError>([] { Tokenizer::train(tokenizer_config(300), "\n\n\n"); }), "sample of 3 bytes");
  expect_says(words_of<ConfigError>([] { Tokenizer::train(tokenizer_config(300), "\xFF\xFE"); }), "sample of 2 bytes");
}

TEST(Tokenizer, WhatIsNotAModelIsAnError) {
  for (const std::string& model :
       {std::string(), std::string("no model"), random_bytes(1000, 1), trained().serialized().substr(0, 5000)}) {
    const std::string words =
        words_of<ConfigError>([&] { Tokenizer::load("sentencepiece", model, "data.tokenizer.model = x.model"); });
    expect_says(words, "data.tokenizer.model = x.model");
  }
  expect_says(words_of<ConfigError>([] { Tokenizer::load("words", "", "a file"); }),
              "unknown kind of tokenizer 'words'");
}

TEST(Tokenizer, TokensOutsideTheVocabularyAreErrors) {
  const std::vector<std::int32_t> beyond = {257}, negative = {-1};
  expect_says(words_of<Error>([&] { Tokenizer::bytes().decode(beyond); }),
              "token 257 is outside the vocabulary of 257 tokens");
  expect_says(words_of<Error>([&] { Tokenizer::bytes().decode(negative); }), "token -1");
}

// A model trained elsewhere, with SentencePiece's defaults: a dummy prefix, normalization, extra spaces removed.
TEST(Tokenizer, AGivenModelIsUsedWithoutItsNormalization) {
  std::string model = trained().serialized();
  model.resize(model.size() - 10);                              // what loading appended
  model += std::string("\x1A\x06\x18\x01\x20\x01\x28\x01", 8);  // add_dummy_prefix, remove_extra_whitespaces
  const Tokenizer tokenizer = Tokenizer::load("sentencepiece", model, "a file");
  expect_lossless(tokenizer);
  EXPECT_EQ(tokenizer.encode("word"), trained().encode("word"));
}

}  // namespace
}  // namespace choir::tests
