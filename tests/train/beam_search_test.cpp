// The search for the likeliest text, on a small model whose texts can all be tried.
#include "framework/train/beam_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "framework/core/error.h"
#include "kernels/philox.h"

namespace choir::tests {
namespace {

constexpr std::int32_t tokens = 4, end = 3;  // of the vocabulary; there is a fifth logit, of no choice
const std::vector<std::int32_t> choices = {0, 1, 2, 3};

/// The logits after a text: any numbers.
std::vector<float> logits_after(std::uint64_t key, const std::vector<std::int32_t>& text) {
  std::uint64_t place = 1;
  for (const std::int32_t token : text) place = place * 5 + static_cast<std::uint64_t>(token);
  std::vector<float> logits;
  for (std::uint64_t i = 0; i < tokens; ++i)
    logits.push_back(static_cast<float>(kernels::philox_word(key, place, i)) * 0x1p-30f);
  logits.push_back(100);
  return logits;
}

double log_probability(const std::vector<float>& logits, std::int32_t token) {
  double sum = 0;
  for (std::size_t i = 0; i < tokens; ++i) sum += std::exp(static_cast<double>(logits[i]));
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - std::log(sum);
}

/// The best text that begins with `text`, by its mean log-probability.
void try_all(std::uint64_t key, std::int64_t most, std::vector<std::int32_t>& text, double sum, double& best_score,
             std::vector<std::int32_t>& best) {
  const std::vector<float> logits = logits_after(key, text);
  const auto length = static_cast<double>(text.size()) + 1;
  for (const std::int32_t token : choices) {
    const double longer = sum + log_probability(logits, token);
    const bool ends = token == end;
    if (!ends) text.push_back(token);
    if ((ends || std::ssize(text) == most) && longer / length > best_score) {
      best_score = longer / length;
      best = text;
    }
    if (!ends && std::ssize(text) < most) try_all(key, most, text, longer, best_score, best);
    if (!ends) text.pop_back();
  }
}

std::vector<std::int32_t> search(std::uint64_t key, std::int64_t beam, std::int64_t most) {
  std::vector<std::vector<std::int32_t>> texts = {{}};
  bool first = true;
  return beam_search({.beam = beam, .most = most, .begin = end, .end = end, .choices = choices},
                     [&](const std::vector<Extension>& extensions) {
                       std::vector<std::vector<std::int32_t>> longer;
                       std::vector<std::vector<float>> logits;
                       for (const auto& [parent, token] : extensions) {
                         longer.push_back(texts.at(static_cast<std::size_t>(parent)));
                         if (!first) longer.back().push_back(token);
                         logits.push_back(logits_after(key, longer.back()));
                       }
                       first = false;
                       texts = longer;
                       return logits;
                     });
}

TEST(BeamSearch, AWideBeamFindsTheBestOfAllTexts) {
  for (std::uint64_t key = 0; key < 20; ++key) {
    std::vector<std::int32_t> text, best;
    double score = -std::numeric_limits<double>::infinity();
    try_all(key, 5, text, 0, score, best);
    EXPECT_EQ(search(key, 1000, 5), best) << key;
  }
}

TEST(BeamSearch, ABeamOfOneTakesTheLikeliestTokenEachTime) {
  for (std::uint64_t key = 0; key < 20; ++key) {
    std::vector<std::int32_t> text;
    while (text.size() < 5) {
      const std::vector<float> logits = logits_after(key, text);
      const auto likeliest = std::max_element(logits.begin(), logits.begin() + tokens) - logits.begin();
      if (likeliest == end) break;
      text.push_back(static_cast<std::int32_t>(likeliest));
    }
    EXPECT_EQ(search(key, 1, 5), text) << key;
  }
}

TEST(BeamSearch, RefusesLogitsThatAreNotFinite) {
  const auto wrong = [](const std::vector<Extension>&) {
    return std::vector<std::vector<float>>{{1, 2, std::nanf(""), 4}};
  };
  EXPECT_THROW(beam_search({.most = 5, .begin = end, .end = end, .choices = choices}, wrong), Error);
}

}  // namespace
}  // namespace choir::tests
