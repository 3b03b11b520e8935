// What a step and an evaluation read: a decoder the next tokens as targets, an encoder masked ones of the same text.
#include "framework/train/text_samples.h"

#include <algorithm>

#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

constexpr std::int64_t length = 16;

class Samples : public ::testing::Test {
 protected:
  Samples() {
    write_documents(folder_ / "corpus.h5", {random_text(900, 1), random_text(170, 2)});
    file_.emplace(folder_ / "corpus.h5");
    config_.model.context = length;
    config_.model.vocabulary = 300;
    config_.model.family = ModelFamily::encoder;
    config_.data.held_out = 0.15;
    config_.train.evaluate_sequences = 0;
  }
  Sampler sampler() const {
    return {*file_, {.sequence_length = length, .seed = config_.train.seed, .held_out = config_.data.held_out}};
  }
  struct Read {
    std::vector<std::int32_t> inputs = std::vector<std::int32_t>(length), targets = inputs;
    std::int64_t bytes = 0;
    bool operator==(const Read&) const = default;
  };
  static Read at(const ReadSample& read, std::int64_t index) {
    Read result;
    result.bytes = read(index, {.inputs = result.inputs, .targets = result.targets});
    return result;
  }

  TemporaryFolder folder_;
  std::optional<TokenFile> file_;
  Config config_;
};

TEST_F(Samples, OfADecoderAreThoseOfTheSampler) {
  config_.model.family = ModelFamily::decoder;
  const Sampler text = sampler();
  Read expected;
  text.train_sequence(7, expected.inputs, expected.targets);
  EXPECT_EQ(at(training_samples(config_, text, 5), 2), expected);
  text.evaluation_sequence(3, expected.inputs, expected.targets);
  expected.bytes = text.target_bytes(expected.targets);
  EXPECT_EQ(at(held_out_samples(config_, text).read, 3), expected);
}

TEST_F(Samples, OfAnEncoderHideTokensOfTheTextAndAskForThem) {
  const Sampler text = sampler();
  for (std::int64_t index = 0; index < 40; ++index) {
    Read plain;
    text.train_sequence(index, plain.inputs, plain.targets);
    const Read masked = at(training_samples(config_, text, 0), index);
    std::int64_t targets = 0;
    for (std::size_t i = 0; i < masked.targets.size(); ++i) {
      if (masked.targets[i] < 0) {
        EXPECT_EQ(masked.inputs[i], plain.targets[i]);
      } else {
        ++targets;
        EXPECT_EQ(masked.targets[i], plain.targets[i]);
        EXPECT_TRUE(masked.inputs[i] == 299 || masked.inputs[i] < text.tokenizer().vocabulary());
      }
    }
    EXPECT_GT(targets, 0);
  }
}

TEST_F(Samples, OfADecoderWithAPrefixHaveNoTargetsInIt) {
  config_.model.family = ModelFamily::decoder;
  config_.model.attention.prefix = 5;
  const Sampler text = sampler();
  Read expected;
  text.train_sequence(7, expected.inputs, expected.targets);
  std::fill_n(expected.targets.begin(), 4, -1);  // the last token of the prefix does not see its target
  EXPECT_EQ(at(training_samples(config_, text, 5), 2), expected);
}

// A token's document is the one of the file that has it: its end-of-document token is its last.
TEST_F(Samples, KnowTheDocumentsOfTheirTokens) {
  write_documents(folder_ / "short.h5", {random_text(40, 1), random_text(5, 2), random_text(9, 3), random_text(30, 4),
                                         random_text(3, 5), random_text(100, 6)});
  file_.emplace(folder_ / "short.h5");
  config_.model.family = ModelFamily::decoder;
  config_.data.held_out = 0.4;
  const Sampler text = sampler();
  const std::int32_t end_of_document = text.tokenizer().end_of_document();
  const auto expect_borders = [&](const ReadSample& read, std::int64_t samples) {
    std::int64_t borders = 0;
    for (std::int64_t index = 0; index < samples; ++index) {
      Read tokens;
      std::vector<kernels::DocumentRange> documents(length);
      read(index, {.inputs = tokens.inputs, .targets = tokens.targets, .documents = documents});
      for (std::size_t i = 0; i < length; ++i) {
        EXPECT_LE(documents[i].begin, static_cast<std::int32_t>(i));
        EXPECT_GT(documents[i].end, static_cast<std::int32_t>(i));
        if (i == 0) {
          EXPECT_EQ(documents[i].begin, 0);
          continue;
        }
        if (tokens.targets[i] < 0) continue;  // what fills up the last sequence
        const bool border = tokens.inputs[i - 1] == end_of_document;
        borders += border;
        EXPECT_EQ(documents[i].begin, border ? static_cast<std::int32_t>(i) : documents[i - 1].begin) << i;
        EXPECT_EQ(documents[i - 1].end, border ? static_cast<std::int32_t>(i) : documents[i].end) << i;
      }
    }
    return borders;
  };
  EXPECT_GT(expect_borders(training_samples(config_, text, 0), text.num_train_windows()), 0);
  const HeldOut held = held_out_samples(config_, text);
  EXPECT_GT(expect_borders(held.read, held.samples), 0);
}

// A step of another batch size, or one of another data rank, reads sample 7 as it is.
TEST_F(Samples, DoNotDependOnHowTheyAreSplitIntoSteps) {
  const Sampler text = sampler();
  EXPECT_EQ(at(training_samples(config_, text, 0), 7), at(training_samples(config_, text, 6), 1));
  const Read first = at(training_samples(config_, text, 0), 0);
  EXPECT_NE(at(training_samples(config_, text, text.num_train_windows()), 0), first) << "another epoch, another mask";
  config_.train.seed = 2;
  EXPECT_NE(at(training_samples(config_, text, 0), 0), first);
}

TEST_F(Samples, HeldOutOnesAreTheSameInEveryEvaluationAndCoverTheText) {
  const Sampler text = sampler();
  const HeldOut all = held_out_samples(config_, text);
  ASSERT_GE(all.all, 6);
  EXPECT_EQ(all.samples, all.all);
  std::vector<Read> reads;
  for (std::int64_t i = 0; i < all.samples; ++i) reads.push_back(at(all.read, i));
  config_.train.seed = 9;  // another run
  config_.train.evaluate_sequences = 3;
  const HeldOut some = held_out_samples(config_, text);
  for (std::int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(at(some.read, i), reads[static_cast<std::size_t>(i * all.all / 3)]) << "a few are some of all";

  // With every token a target, each held-out token is one once.
  config_.train.evaluate_sequences = 0;
  config_.data.masked.share = 1;
  const HeldOut whole = held_out_samples(config_, text);
  std::vector<std::int32_t> found;
  for (std::int64_t i = 0; i < whole.samples; ++i)
    std::ranges::copy_if(at(whole.read, i).targets, std::back_inserter(found),
                         [](std::int32_t token) { return token >= 0; });
  std::vector<std::int32_t> expected(static_cast<std::size_t>(file_->num_tokens() - text.first_held_out_token()));
  file_->read(text.first_held_out_token(), expected);
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace choir::tests
