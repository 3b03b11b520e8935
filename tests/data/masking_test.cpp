// Masked tokens: the shares are those asked for within binomial bounds, what a sample becomes depends on key, sample
// and position only, and targets are the tokens that were hidden.
#include "framework/data/masking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace choir::tests {
namespace {

constexpr std::int32_t vocabulary = 100, mask = 100;

struct Sample {
  std::vector<std::int32_t> inputs, targets;
  bool operator==(const Sample&) const = default;
};

std::vector<std::int32_t> text_of(std::int64_t sample, std::size_t length) {
  std::vector<std::int32_t> text(length);
  for (std::size_t i = 0; i < length; ++i)
    text[i] = static_cast<std::int32_t>((static_cast<std::size_t>(sample) * 31 + i * 7) % vocabulary);
  return text;
}

Sample masked(std::vector<std::int32_t> text, std::int64_t sample, const MaskedConfig& shares = {},
              std::uint64_t key = 5) {
  Sample result{.inputs = std::vector<std::int32_t>(text.size(), -7), .targets = std::move(text)};
  mask_tokens({.shares = shares, .key = key, .mask_token = mask, .text_vocabulary = vocabulary}, sample, result.inputs,
              result.targets);
  return result;
}

/// `count` of `n` is within six deviations of a binomial distribution of probability p.
void expect_share(std::int64_t count, std::int64_t n, double p) {
  const double mean = p * static_cast<double>(n);
  EXPECT_NEAR(static_cast<double>(count), mean, 6 * std::sqrt(mean * (1 - p)) + 1e-9) << "of " << n;
}

void expect_shares(const MaskedConfig& shares) {
  constexpr std::int64_t samples = 400;
  constexpr std::size_t length = 512;
  std::int64_t chosen = 0, hidden = 0, same = 0, other = 0;
  std::vector<std::int64_t> by_position(length), drawn(vocabulary);
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    const std::vector<std::int32_t> text = text_of(sample, length);
    const Sample result = masked(text, sample, shares);
    for (std::size_t i = 0; i < length; ++i) {
      if (result.targets[i] < 0) {
        EXPECT_EQ(result.inputs[i], text[i]) << "a token that is not a target is read as it is";
        continue;
      }
      EXPECT_EQ(result.targets[i], text[i]);
      ++chosen;
      ++by_position[i];
      if (result.inputs[i] == mask) {
        ++hidden;
      } else if (result.inputs[i] == text[i]) {
        ++same;
      } else {
        ++other;
        ++drawn[static_cast<std::size_t>(result.inputs[i])];
      }
    }
  }
  expect_share(chosen, samples * static_cast<std::int64_t>(length), shares.share);
  expect_share(hidden, chosen, shares.mask_token);
  const double by_chance = shares.random_token / vocabulary;  // a random token that is the token itself
  expect_share(other, chosen, shares.random_token - by_chance);
  expect_share(same, chosen, 1 - shares.mask_token - shares.random_token + by_chance);
  for (const std::int64_t count : by_position) expect_share(count, samples, shares.share);
  if (other > 0)
    for (const std::int64_t count : drawn) expect_share(count, other, 1.0 / vocabulary);
}

TEST(Masking, SharesAreThoseOfBert) {
  EXPECT_EQ(MaskedConfig{}, (MaskedConfig{.share = 0.15, .mask_token = 0.8, .random_token = 0.1}));
  expect_shares({});
}

TEST(Masking, SharesAreThoseAskedFor) {
  expect_shares({.share = 0.4, .mask_token = 0.5, .random_token = 0.5});
  expect_shares({.share = 1, .mask_token = 1, .random_token = 0});
  expect_shares({.share = 0.3, .mask_token = 0, .random_token = 0});
  expect_shares({.share = 0.05, .mask_token = 0, .random_token = 1});
}

TEST(Masking, DependsOnKeyAndSampleAndPositionOnly) {
  const std::vector<std::int32_t> text = text_of(3, 200);
  const Sample whole = masked(text, 3);
  EXPECT_EQ(masked(text, 3), whole);
  EXPECT_NE(masked(text, 4), whole);
  EXPECT_NE(masked(text, 3, {}, 6), whole);
  // The same positions are chosen in another text, and in one that ends later, if neither has too few.
  const Sample other = masked(text_of(9, 200), 3), longer = masked(text_of(3, 300), 3);
  for (std::size_t i = 0; i < 200; ++i) {
    EXPECT_EQ(other.targets[i] >= 0, whole.targets[i] >= 0);
    EXPECT_EQ(other.inputs[i] == mask, whole.inputs[i] == mask);
    EXPECT_EQ(longer.targets[i], whole.targets[i]);
    EXPECT_EQ(longer.inputs[i], whole.inputs[i]);
  }
}

TEST(Masking, ALargerShareHasTheTargetsOfASmallerOne) {
  for (std::int64_t sample = 0; sample < 20; ++sample) {
    const Sample few = masked(text_of(sample, 50), sample, {.share = 0.1}),
                 many = masked(text_of(sample, 50), sample, {.share = 0.5});
    for (std::size_t i = 0; i < 50; ++i)
      if (few.targets[i] >= 0) {
        EXPECT_EQ(many.targets[i], few.targets[i]);
      }
  }
}

// A batch without any target has no loss.
TEST(Masking, ASampleWithTextHasATarget) {
  for (const std::size_t length : {1, 2, 7})
    for (std::int64_t sample = 0; sample < 200; ++sample) {
      const Sample result = masked(text_of(sample, length), sample, {.share = 1e-9});
      EXPECT_EQ(std::ranges::count_if(result.targets, [](std::int32_t token) { return token >= 0; }), 1);
    }
}

TEST(Masking, WhatFillsASampleUpIsNeitherHiddenNorATarget) {
  for (std::int64_t sample = 0; sample < 100; ++sample) {
    std::vector<std::int32_t> text = text_of(sample, 20);
    const std::size_t end = static_cast<std::size_t>(sample) % 20;
    std::fill(text.begin() + static_cast<std::ptrdiff_t>(end), text.end(), -1);
    const Sample result = masked(text, sample, {.share = 0.9});
    for (std::size_t i = end; i < 20; ++i) {
      EXPECT_EQ(result.targets[i], -1);
      EXPECT_EQ(result.inputs[i], -7) << "left as it was";
    }
    EXPECT_EQ(std::ranges::any_of(result.targets, [](std::int32_t token) { return token >= 0; }), end > 0);
  }
}

}  // namespace
}  // namespace choir::tests
