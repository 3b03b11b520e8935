#include "framework/train/samples.h"

#include <algorithm>
#include <cstdlib>

#include "framework/core/runtime.h"
#include "framework/data/masking.h"

namespace choir {
namespace {

/// Turns sample `sample` of the sampler into what the family reads.
using Prepare =
    std::function<void(std::int64_t sample, std::span<std::int32_t> inputs, std::span<std::int32_t> targets)>;

Prepare prepare_for(const Config& config, const Sampler& sampler, std::uint64_t key) {
  switch (config.model.family) {
    case ModelFamily::decoder:
      return [](std::int64_t, std::span<std::int32_t>, std::span<std::int32_t>) {};
    case ModelFamily::encoder:
      return [masking = Masking{.shares = config.data.masked,
                                .key = key,
                                .mask_token = static_cast<std::int32_t>(config.model.text_vocabulary()),
                                .text_vocabulary = sampler.tokenizer().vocabulary()}](
                 std::int64_t sample, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
        mask_tokens(masking, sample, inputs, targets);
      };
  }
  std::abort();  // all values are above
}

}  // namespace

ReadSample training_samples(const Config& config, const Sampler& sampler, std::int64_t first) {
  return [&sampler, first, prepare = prepare_for(config, sampler, random_key(config.train.seed, "masked tokens"))](
             std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
    sampler.train_sequence(first + index, inputs, targets);
    prepare(first + index, inputs, targets);
    return std::int64_t{0};
  };
}

HeldOut held_out(const Config& config, const Sampler& sampler) {
  const std::int64_t all = sampler.num_evaluation_sequences(), wanted = config.train.evaluate_sequences;
  const std::int64_t samples = wanted > 0 ? std::min(wanted, all) : all;
  const auto read = [&sampler, all, samples,
                     prepare = prepare_for(config, sampler, random_key(0, "masked held-out tokens"))](
                        std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
    const std::int64_t sequence = index * all / samples;
    sampler.evaluation_sequence(sequence, inputs, targets);
    prepare(sequence, inputs, targets);
    return sampler.target_bytes(targets);
  };
  return {.all = all, .samples = samples, .read = read};
}

}  // namespace choir
