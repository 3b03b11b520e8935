// The order is a bijection of every size; training and held-out text do not overlap and have the requested shares;
// every held-out token is counted once.
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

// The image of index i is uniform over seeds: chi-square with 99 degrees of freedom has mean 99 and deviation
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

TEST_F(SamplerTest, WholeDocumentsAreHeldOutIfTheyAreNotFarAboveTheShare) {
  const TokenFile file =
      corpus({std::string(49, 'a'), std::string(29, 'b'), std::string(9, 'c'), std::string(9, 'd')});  // 50 30 10 10
  const auto first = [&](double held_out) {
    return Sampler(file, {.sequence_length = 4, .held_out = held_out}).first_held_out_token();
  };
  EXPECT_EQ(first(0), 100);
  EXPECT_EQ(first(0.07), 90);
  EXPECT_EQ(first(0.1), 90);
  EXPECT_EQ(first(0.15), 80);
  EXPECT_EQ(first(0.2), 80);
  EXPECT_EQ(first(0.4), 50);
  EXPECT_EQ(first(0.5), 50);
}

TEST_F(SamplerTest, ADocumentIsCutIfWholeOnesWouldBeFarAboveTheShare) {
  const TokenFile file =
      corpus({std::string(49, 'a'), std::string(29, 'b'), std::string(9, 'c'), std::string(9, 'd')});  // 50 30 10 10
  const auto first = [&](double held_out) {
    return Sampler(file, {.sequence_length = 4, .held_out = held_out}).first_held_out_token();
  };
  EXPECT_EQ(first(0.001), 99);
  EXPECT_EQ(first(0.06), 94);
  EXPECT_EQ(first(0.13), 87);
  EXPECT_EQ(first(0.3), 70);
  EXPECT_EQ(first(0.9), 10);  // whole documents would leave nothing to train on
}

TEST_F(SamplerTest, TheShareIsTheRequestedOneForFilesOfAnySizes) {
  const std::vector<std::vector<std::size_t>> sizes = {
      {2000, 195000}, {195000, 2000}, {65000, 65000, 65000}, {195000}, {10, 10, 195000, 10, 10}};
  for (const std::vector<std::size_t>& of : sizes) {
    std::vector<std::string> documents;
    for (const std::size_t bytes : of) documents.push_back(random_text(bytes, 1));
    const TokenFile file = corpus(documents);
    for (const double asked : {0.01, 0.05, 0.3}) {
      const std::int64_t first = Sampler(file, {.sequence_length = 64, .held_out = asked}).first_held_out_token();
      const double share = static_cast<double>(file.num_tokens() - first) / static_cast<double>(file.num_tokens());
      EXPECT_GE(share, asked) << of.front();
      EXPECT_LE(share, 1.5 * asked) << of.front();
    }
  }
}

TEST_F(SamplerTest, TheSplitOfACheckpointIsKept) {
  const TokenFile file = corpus({std::string(49, 'a'), std::string(49, 'b')});
  const Sampler sampler(file, {.sequence_length = 4, .held_out = 0.1, .first_held_out_token = 50});
  EXPECT_EQ(sampler.first_held_out_token(), 50);
  EXPECT_EQ(sampler.num_train_windows(), 12);
  for (const std::int64_t outside : {-1, 101}) {
    expect_says(words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 4, .first_held_out_token = outside}); }),
                "the run holds out the tokens from " + std::to_string(outside) + " on, and data.path = " + file.path() +
                    " has 100");
  }
}

TEST_F(SamplerTest, OlderCheckpointsWereSplitBetweenDocuments) {
  const TokenFile file =
      corpus({std::string(49, 'a'), std::string(29, 'b'), std::string(9, 'c'), std::string(9, 'd')});  // 50 30 10 10
  EXPECT_EQ(held_out_split_by_documents(file, 0), 100);
  EXPECT_EQ(held_out_split_by_documents(file, 0.001), 90);
  EXPECT_EQ(held_out_split_by_documents(file, 0.1), 90);
  EXPECT_EQ(held_out_split_by_documents(file, 0.11), 80);
  EXPECT_EQ(held_out_split_by_documents(file, 0.5), 50);
  EXPECT_EQ(held_out_split_by_documents(file, 0.9), 50);
  EXPECT_EQ(held_out_split_by_documents(corpus({std::string(99, 'a')}), 0.05), 95);
}

TEST_F(SamplerTest, TrainingAndHeldOutTextNeverOverlapWhereverTheCutIs) {
  std::string text;
  for (int byte = 0; byte < 60; ++byte) text += static_cast<char>(byte);
  const TokenFile file = corpus({text.substr(0, 20), text.substr(20)});  // no two tokens of text are equal
  for (const std::int64_t T : {1, 3, 10}) {
    for (std::int64_t first = T + 1; first <= file.num_tokens(); ++first) {
      const Sampler sampler(file, {.sequence_length = T, .first_held_out_token = first});
      std::vector<std::int32_t> inputs(static_cast<std::size_t>(T)), targets(inputs.size());
      std::vector<std::int32_t> all(static_cast<std::size_t>(file.num_tokens())), held_out;
      file.read(0, all);
      const std::vector<std::int32_t> for_training(all.begin(), all.begin() + first),
          rest(all.begin() + first, all.end());
      for (std::int64_t index = 0; index < sampler.num_train_windows(); ++index) {
        sampler.train_sequence(index, inputs, targets);
        for (const std::int32_t token : inputs) ASSERT_NE(std::ranges::count(for_training, token), 0);
        for (const std::int32_t token : targets) ASSERT_NE(std::ranges::count(for_training, token), 0);
      }
      for (std::int64_t index = 0; index < sampler.num_evaluation_sequences(); ++index) {
        sampler.evaluation_sequence(index, inputs, targets);
        for (const std::int32_t token : targets)
          if (token >= 0) held_out.push_back(token);
      }
      ASSERT_EQ(held_out, rest) << T << " " << first;
    }
  }
}

TEST_F(SamplerTest, EveryHeldOutTokenIsATargetOnceAndNoTrainingSampleSeesOne) {
  for (const std::size_t held_out_bytes : {1u, 8u, 9u, 10u, 11u, 25u}) {
    std::string held_out;
    for (std::size_t i = 0; i < held_out_bytes; ++i) held_out += static_cast<char>('A' + i);
    const TokenFile file = corpus({std::string(60, 'x'), std::string(40, 'y'), held_out});
    const std::int64_t T = 10;
    const Sampler sampler(file, {.sequence_length = T, .first_held_out_token = 102});
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

TEST_F(SamplerTest, TooLittleTextIsAnErrorWithNumbers) {
  const TokenFile file = corpus({std::string(49, 'a'), std::string(49, 'b')});
  const std::string words = words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 50, .held_out = 0.5}); });
  expect_says(words, "has 50 tokens for training, and one sequence of model.context = 50 needs 51");
  expect_says(words, "50 of its 100 tokens are held out by data.held_out = 0.5");
  EXPECT_EQ(Sampler(file, {.sequence_length = 49, .held_out = 0.5}).num_train_windows(), 1);
}

TEST_F(SamplerTest, OptionsOutOfRangeAreErrors) {
  const TokenFile file = corpus({std::string(49, 'a')});
  for (const double held_out : {-0.1, 1.0, std::nan("")}) {
    expect_says(words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 4, .held_out = held_out}); }),
                "data.held_out = ");
  }
  expect_says(words_of<ConfigError>([&] { Sampler(file, {.sequence_length = 0}); }), "model.context = 0");
}

}  // namespace
}  // namespace choir::tests
