// The order is a bijection of every size; training and held-out text are apart; every held-out token is counted once.
#include "framework/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

std::vector<std::int64_t> order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  std::vector<std::int64_t> result;
  for (std::int64_t i = 0; i < size; ++i) result.push_back(permute(i, size, seed, epoch));
  return result;
}

TEST(Permute, IsABijectionOfEverySize) {
  for (const std::int64_t size :
       {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000, 4095, 4096, 4097, 65536, 100003}) {
    for (const std::uint64_t seed : {0ull, 1ull, ~0ull}) {
      std::vector<bool> seen(static_cast<std::size_t>(size), false);
      for (const std::int64_t at : order(size, seed, 3)) {
        ASSERT_GE(at, 0);
        ASSERT_LT(at, size);
        ASSERT_FALSE(seen[static_cast<std::size_t>(at)]) << size;
        seen[static_cast<std::size_t>(at)] = true;
      }
    }
  }
}

TEST(Permute, SizesBeyond32BitsStayInside) {
  const std::int64_t size = (std::int64_t{1} << 40) + 12345;
  std::set<std::int64_t> seen;
  for (std::int64_t i = 0; i < 1000; ++i) {
    const std::int64_t at = permute(i, size, 1, 0);
    EXPECT_GE(at, 0);
    EXPECT_LT(at, size);
    EXPECT_TRUE(seen.insert(at).second);
  }
}

TEST(Permute, DiffersByEpochAndSeedAndRepeats) {
  EXPECT_EQ(order(1000, 1, 0), order(1000, 1, 0));
  EXPECT_NE(order(1000, 1, 0), order(1000, 1, 1));
  EXPECT_NE(order(1000, 1, 0), order(1000, 2, 0));
}

// Where index i goes is uniform over seeds: chi-square with 99 degrees of freedom has mean 99 and deviation
// sqrt(2 * 99) = 14.1; the mean of 100 of them has deviation 1.41, and six of those are allowed.
TEST(Permute, SpreadsEvenly) {
  const int size = 100, seeds = 2000;
  double mean = 0;
  for (int index = 0; index < size; ++index) {
    std::vector<int> count(size, 0);
    for (int seed = 0; seed < seeds; ++seed)
      ++count[static_cast<std::size_t>(permute(index, size, static_cast<std::uint64_t>(seed), 0))];
    const double expected = static_cast<double>(seeds) / size;
    for (const int n : count) mean += (n - expected) * (n - expected) / expected / size;
  }
  EXPECT_NEAR(mean, 99.0, 6 * 1.41);
}

class SamplerTest : public ::testing::Test {
 protected:
  TokenFile corpus(const std::vector<std::string>& documents) {
    write_documents(folder_ / "corpus.h5", documents);
    return TokenFile(folder_ / "corpus.h5");
  }
  TemporaryFolder folder_;
};

TEST_F(SamplerTest, AnEpochHasEveryWindowOnceAndTargetsAreOneTokenLater) {
  const std::string text = random_text(1003, 1);
  const TokenFile file = corpus({text});
  const std::int64_t T = 10;
  const Sampler sampler(file, {.sequence_length = T, .seed = 5});
  ASSERT_EQ(sampler.num_train_windows(), 100);  // 1004 tokens with the end of the document
  EXPECT_EQ(sampler.num_evaluation_sequences(), 0);
  std::vector<std::int32_t> all(1004), inputs(10), targets(10);
  file.read(0, all);
  std::vector<std::vector<std::int32_t>> first_epoch, second_epoch;
  for (std::int64_t index = 0; index < 200; ++index) {
    sampler.train_sequence(index, inputs, targets);
    const std::int64_t window = permute(index % 100, 100, 5, index / 100);
    for (std::size_t t = 0; t < 10; ++t) {
      EXPECT_EQ(inputs[t], all[static_cast<std::size_t>(window) * 10 + t]);
      EXPECT_EQ(targets[t], all[static_cast<std::size_t>(window) * 10 + t + 1]);
    }
    (index < 100 ? first_epoch : second_epoch).push_back(inputs);
  }
  EXPECT_NE(first_epoch, second_epoch);
  std::ranges::sort(first_epoch);
  std::ranges::sort(second_epoch);
  EXPECT_EQ(first_epoch, second_epoch);
}

TEST_F(SamplerTest, WholeDocumentsAreHeldOutFromTheEnd) {
  const TokenFile file =
      corpus({std::string(49, 'a'), std::string(29, 'b'), std::string(9, 'c'), std::string(9, 'd')});  // 50 30 10 10
  const auto first = [&](double held_out) {
    return Sampler(file, {.sequence_length = 4, .held_out = held_out}).first_held_out_token();
  };
  EXPECT_EQ(first(0), 100);
  EXPECT_EQ(first(0.001), 90);
  EXPECT_EQ(first(0.1), 90);
  EXPECT_EQ(first(0.11), 80);
  EXPECT_EQ(first(0.2), 80);
  EXPECT_EQ(first(0.5), 50);
  EXPECT_EQ(first(0.9), 50);  // the first document is always for training
}

TEST_F(SamplerTest, ACorpusOfOneDocumentIsCutWithinIt) {
  const Sampler sampler(corpus({std::string(99, 'a')}), {.sequence_length = 4, .held_out = 0.05});
  EXPECT_EQ(sampler.first_held_out_token(), 95);
}

TEST_F(SamplerTest, EveryHeldOutTokenIsATargetOnceAndNoTrainingSampleSeesOne) {
  for (const std::size_t held_out_bytes : {1u, 8u, 9u, 10u, 11u, 25u}) {
    std::string held_out;
    for (std::size_t i = 0; i < held_out_bytes; ++i) held_out += static_cast<char>('A' + i);
    const TokenFile file = corpus({std::string(60, 'x'), std::string(40, 'y'), held_out});
    const std::int64_t T = 10;
    const Sampler sampler(file, {.sequence_length = T, .held_out = 0.001});
    std::vector<std::int32_t> inputs(10), targets(10), counted;
    std::int64_t bytes = 0;
    std::int32_t previous = 256;  // the end of the document before
    for (std::int64_t index = 0; index < sampler.num_evaluation_sequences(); ++index) {
      sampler.evaluation_sequence(index, inputs, targets);
      bytes += sampler.target_bytes(targets);
      for (std::size_t t = 0; t < 10; ++t) {
        if (targets[t] < 0) {
          EXPECT_EQ(targets[t], -1);
          EXPECT_EQ(inputs[t], 256);
          continue;
        }
        EXPECT_EQ(inputs[t], previous);
        previous = targets[t];
        counted.push_back(targets[t]);
      }
    }
    std::vector<std::int32_t> expected = Tokenizer::bytes().encode(held_out);
    expected.push_back(256);
    EXPECT_EQ(counted, expected);
    EXPECT_EQ(bytes, static_cast<std::int64_t>(held_out_bytes));
    for (std::int64_t index = 0; index < 2 * sampler.num_train_windows(); ++index) {
      sampler.train_sequence(index, inputs, targets);
      for (const std::int32_t token : targets) EXPECT_TRUE(token == 'x' || token == 'y' || token == 256);
    }
  }
}

TEST_F(SamplerTest, TooLittleTextIsToldWithNumbers) {
  const TokenFile file = corpus({std::string(49, 'a'), std::string(49, 'b')});
  const std::string words = words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 50, .held_out = 0.1}); });
  expect_says(words, "has 50 tokens for training, and one sequence of model.context = 50 needs 51");
  expect_says(words, "50 of its 100 tokens are held out by data.held_out = 0.1");
  EXPECT_EQ(Sampler(file, {.sequence_length = 49, .held_out = 0.1}).num_train_windows(), 1);
}

TEST_F(SamplerTest, OptionsOutOfRangeAreTold) {
  const TokenFile file = corpus({std::string(49, 'a')});
  for (const double held_out : {-0.1, 1.0, std::nan("")}) {
    expect_says(words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 4, .held_out = held_out}); }),
                "data.held_out = ");
  }
  expect_says(words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 0}); }), "model.context = 0");
}

}  // namespace
}  // namespace choir::tests
