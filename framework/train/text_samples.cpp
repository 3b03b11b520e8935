#include "framework/train/text_samples.h"

#include <algorithm>
#include <cstdlib>

#include "framework/core/runtime.h"
#include "framework/data/masking.h"

namespace choir {
namespace {

/// Turns sample `index` of the sampler into what the family reads.
using Prepare = std::function<void(std::int64_t index, const Sample&)>;

Prepare prepare_for(const Config& config, const Sampler& sampler, std::uint64_t key) {
  switch (config.model.family) {
    case ModelFamily::decoder:
      // A token of the prefix sees the next one, which is a target only after the last of them.
      return [prefix = config.model.attention.prefix](std::int64_t, const Sample& sample) {
        std::fill_n(sample.targets.begin(), std::max<std::int64_t>(0, prefix - 1), -1);
      };
    case ModelFamily::encoder:
      return
          [masking = Masking{.shares = config.data.masked,
                             .key = key,
                             .mask_token = static_cast<std::int32_t>(config.model.text_vocabulary()),
                             .text_vocabulary = sampler.tokenizer().vocabulary()}](
              std::int64_t index, const Sample& sample) { mask_tokens(masking, index, sample.inputs, sample.targets); };
    case ModelFamily::encoder_decoder:
    case ModelFamily::classifier:
    case ModelFamily::vision:
      break;  // these read whole texts, and images
  }
  std::abort();  // all values are above
}

}  // namespace

ReadSample training_samples(const Config& config, const Sampler& sampler, std::int64_t first) {
  return [&sampler, first, prepare = prepare_for(config, sampler, random_key(config.train.seed, "masked tokens"))](
             std::int64_t index, const Sample& sample) {
    sampler.train_sequence(first + index, sample.inputs, sample.targets);
    sampler.train_documents(first + index, sample.documents);
    prepare(first + index, sample);
    return std::int64_t{0};
  };
}

HeldOut held_out_samples(const Config& config, const Sampler& sampler) {
  const std::int64_t all = sampler.num_evaluation_sequences(), wanted = config.train.evaluate_sequences;
  const std::int64_t samples = wanted > 0 ? std::min(wanted, all) : all;
  const auto read = [&sampler, all, samples,
                     prepare = prepare_for(config, sampler, random_key(0, "masked held-out tokens"))](
                        std::int64_t index, const Sample& sample) {
    const std::int64_t sequence = index * all / samples;
    sampler.evaluation_sequence(sequence, sample.inputs, sample.targets);
    sampler.evaluation_documents(sequence, sample.documents);
    prepare(sequence, sample);
    return sampler.target_bytes(sample.targets);
  };
  return {.all = all, .samples = samples, .read = read};
}

}  // namespace choir
