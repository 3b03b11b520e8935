#include "framework/data/sampler.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <utility>

#include "kernels/philox.h"

namespace choir {
namespace {

std::int64_t tokens_wanted(const TokenFile& file, double held_out) {
  return static_cast<std::int64_t>(std::ceil(held_out * static_cast<double>(file.num_tokens())));
}

}  // namespace

std::int64_t held_out_split(const TokenFile& file, double held_out) {
  const std::int64_t wanted = tokens_wanted(file, held_out), exact = file.num_tokens() - wanted;
  const auto offsets = file.document_offsets();
  const std::int64_t whole = *(std::ranges::upper_bound(offsets, exact) - 1);  // the last start at or before `exact`
  return whole > 0 && exact - whole <= wanted / 2 ? whole : exact;
}

std::int64_t held_out_split_by_documents(const TokenFile& file, double held_out) {
  const std::int64_t wanted = tokens_wanted(file, held_out), exact = file.num_tokens() - wanted;
  if (wanted == 0 || file.num_documents() == 1) return exact;
  const auto starts = file.document_offsets().subspan(1, static_cast<std::size_t>(file.num_documents()) - 1);
  const auto after = std::ranges::upper_bound(starts, exact);
  return after == starts.begin() ? starts.front() : *(after - 1);
}

std::int64_t permute(std::int64_t index, std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  constexpr int rounds = 6;
  constexpr std::uint64_t purpose = 0x6F72646572ull << 8;  // keeps clear of other uses of the seed: "order"
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size - 1))) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  auto value = static_cast<std::uint64_t>(index);
  // A permutation of 2^(2 half_bits) >= size values. Applied repeatedly from inside [0, size), it returns there.
  do {
    std::uint64_t left = value >> half_bits, right = value & mask;
    for (std::uint64_t round = 0; round < rounds; ++round) {
      const kernels::PhiloxBlock random =
          kernels::philox(seed ^ purpose, right | round << 32, static_cast<std::uint64_t>(epoch));
      left = std::exchange(right, left ^ (random[0] & mask));
    }
    value = left << half_bits | right;
  } while (value >= static_cast<std::uint64_t>(size));
  return static_cast<std::int64_t>(value);
}

Sampler::Sampler(const TokenFile& file, const SamplerOptions& options) : file_(file), options_(options) {
  std::vector<Problem> problems;
  if (options.sequence_length < 1) {
    problems.push_back({.what = fmt::format("model.context = {} leaves no room for a token", options.sequence_length),
                        .fix = "set model.context to 1 or more"});
  }
  if (!(options.held_out >= 0 && options.held_out < 1)) {
    problems.push_back({.what = fmt::format("data.held_out = {} is not a share of the text", options.held_out),
                        .fix = "set data.held_out to 0 (nothing is held out) or more, and below 1"});
  }
  const std::int64_t given = options.first_held_out_token.value_or(0);
  if (given < 0 || given > file.num_tokens()) {
    problems.push_back({.what = fmt::format("the run holds out the tokens from {} on, and data.path = {} has {}", given,
                                            file.path(), file.num_tokens()),
                        .why = "the run was started with another token file",
                        .fix = "name the token file of the run"});
  }
  throw_if_any(problems);

  first_held_out_token_ =
      options.first_held_out_token ? *options.first_held_out_token : held_out_split(file, options.held_out);
  train_windows_ = std::max<std::int64_t>(first_held_out_token_ - 1, 0) / options.sequence_length;
  if (train_windows_ == 0) {
    throw ConfigError(
        {.what =
             fmt::format("data.path = {} has {} tokens for training, and one sequence of model.context = {} needs {}",
                         file.path(), first_held_out_token_, options.sequence_length, options.sequence_length + 1),
         .why = fmt::format("{} of its {} tokens are held out by data.held_out = {}",
                            file.num_tokens() - first_held_out_token_, file.num_tokens(), options.held_out),
         .fix = "prepare more text, set a smaller model.context, or a smaller data.held_out"});
  }
}

std::int64_t Sampler::first_of_train_sequence(std::int64_t index) const {
  assert(index >= 0);
  const std::int64_t epoch = index / train_windows_;
  return permute(index % train_windows_, train_windows_, options_.seed, epoch) * options_.sequence_length;
}

void Sampler::train_sequence(std::int64_t index, std::span<std::int32_t> inputs,
                             std::span<std::int32_t> targets) const {
  const std::int64_t first = first_of_train_sequence(index);
  file_.read(first, inputs);
  file_.read(first + 1, targets);
}

// The first input is the token before the held-out text, so that the first held-out token is a target too.
std::int64_t Sampler::first_of_evaluation_sequence(std::int64_t index) const {
  assert(index >= 0 && index < num_evaluation_sequences());
  return first_held_out_token_ - 1 + index * options_.sequence_length;
}

void Sampler::evaluation_sequence(std::int64_t index, std::span<std::int32_t> inputs,
                                  std::span<std::int32_t> targets) const {
  const std::int64_t first = first_of_evaluation_sequence(index);
  const auto count = static_cast<std::size_t>(std::min(options_.sequence_length, file_.num_tokens() - 1 - first));
  file_.read(first, inputs.first(count));
  file_.read(first + 1, targets.first(count));
  std::ranges::fill(inputs.subspan(count), file_.tokenizer().end_of_document());
  std::ranges::fill(targets.subspan(count), -1);
}

void Sampler::documents_from(std::int64_t first, std::span<kernels::DocumentRange> documents) const {
  const auto offsets = file_.document_offsets();
  const std::int64_t length = std::ssize(documents);
  auto end = std::ranges::upper_bound(offsets, first);  // of the document of `first`
  for (std::int64_t position = 0; position < length; ++end) {
    const bool is_last = end + 1 >= offsets.end();
    const auto next = static_cast<std::int32_t>(is_last ? length : std::min(*end - first, length));
    const kernels::DocumentRange document{static_cast<std::int32_t>(position), next};
    for (; position < next; ++position) documents[static_cast<std::size_t>(position)] = document;
  }
}

void Sampler::train_documents(std::int64_t index, std::span<kernels::DocumentRange> documents) const {
  documents_from(first_of_train_sequence(index), documents);
}

void Sampler::evaluation_documents(std::int64_t index, std::span<kernels::DocumentRange> documents) const {
  documents_from(first_of_evaluation_sequence(index), documents);
}

std::int64_t Sampler::num_evaluation_sequences() const {
  return (file_.num_tokens() - first_held_out_token_ + options_.sequence_length - 1) / options_.sequence_length;
}

std::int64_t Sampler::target_bytes(std::span<const std::int32_t> targets) const {
  std::int64_t bytes = 0;
  for (const std::int32_t target : targets) bytes += target < 0 ? 0 : file_.tokenizer().byte_length(target);
  return bytes;
}

}  // namespace choir
