// Which token is drawn.
#include "framework/train/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

namespace choir::tests {
namespace {

std::vector<std::int32_t> first_tokens(std::int32_t count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

/// All tokens that some random number gives.
std::set<std::int32_t> drawn(const std::vector<float>& logits, const std::vector<std::int32_t>& choices,
                             const GenerateConfig& config) {
  std::set<std::int32_t> tokens;
  for (int i = 0; i < 1000; ++i) tokens.insert(sample_token(logits, choices, config, i / 1000.0));
  return tokens;
}

TEST(SampleToken, NeverDrawsWhatIsNotAChoice) {
  const std::vector<float> logits = {1, 2, 3, 2, 50, 60, 70};
  const std::vector<std::int32_t> choices = {0, 1, 3};
  EXPECT_EQ(drawn(logits, choices, {}), (std::set<std::int32_t>{0, 1, 3}));
  EXPECT_EQ(drawn(logits, choices, {.temperature = 0}), (std::set<std::int32_t>{1})) << "of equals the first";
  EXPECT_EQ(drawn(logits, choices, {.temperature = 100}), (std::set<std::int32_t>{0, 1, 3}));
  EXPECT_EQ(drawn(logits, choices, {.top_k = 2}), (std::set<std::int32_t>{1, 3})) << "of the choices, not of all";
  EXPECT_EQ(drawn(logits, choices, {.top_k = 100}), (std::set<std::int32_t>{0, 1, 3}));
  EXPECT_EQ(drawn(logits, choices, {.top_p = 0.1}), (std::set<std::int32_t>{1}));
}

TEST(SampleToken, DrawsByTheSoftmaxOfTheChoices) {
  const std::vector<float> logits = {0, std::log(3.0f), 100};
  int ones = 0;
  for (int i = 0; i < 1000; ++i) ones += sample_token(logits, first_tokens(2), {}, (i + 0.5) / 1000);
  EXPECT_EQ(ones, 750);
}

TEST(SampleToken, RefusesLogitsThatAreNotFinite) {
  for (const float wrong : {std::nanf(""), HUGE_VALF, -HUGE_VALF})
    EXPECT_THROW(sample_token(std::vector<float>{1, wrong, 2}, first_tokens(3), {}, 0.5), Error) << wrong;
  EXPECT_EQ(sample_token(std::vector<float>{1, 2, std::nanf("")}, first_tokens(2), {.temperature = 0}, 0.5), 1);
}

TEST(DocumentsOf, EndWithTheTokenThatEndsThem) {
  const auto expect = [](const std::vector<std::int32_t>& tokens, const std::vector<kernels::DocumentRange>& expected) {
    const auto documents = documents_of(tokens, 9);
    ASSERT_EQ(documents.size(), expected.size());
    for (std::size_t i = 0; i < documents.size(); ++i) {
      EXPECT_EQ(documents[i].begin, expected[i].begin) << i;
      EXPECT_EQ(documents[i].end, expected[i].end) << i;
    }
  };
  expect({}, {});
  expect({1, 2}, {{0, 2}, {0, 2}});
  expect({9}, {{0, 1}});
  expect({9, 1, 2}, {{0, 1}, {1, 3}, {1, 3}});
  expect({1, 9, 9, 2, 9}, {{0, 2}, {0, 2}, {2, 3}, {3, 5}, {3, 5}});
}

TEST(DrawableTokens, OfBytesAreAll) { EXPECT_EQ(drawable_tokens(Tokenizer::bytes()), first_tokens(257)); }

TEST(DrawableTokens, LeaveOutTokensThatNoTextIsEncodedAs) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "the birds sing " + std::to_string(i * i) + "\n";
  const Tokenizer tokenizer = Tokenizer::train({.kind = TokenizerKind::sentencepiece, .vocabulary = 300}, text);
  const std::vector<std::int32_t> tokens = drawable_tokens(tokenizer);
  EXPECT_EQ(tokens.size(), 299u) << "all but SentencePiece's 'unknown'";
  for (const std::int32_t token : tokens)
    EXPECT_TRUE(tokenizer.byte_length(token) > 0 || token == tokenizer.end_of_document()) << token;
}

}  // namespace
}  // namespace choir::tests
