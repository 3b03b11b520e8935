// What `choir inspect` looks at: a text, pictures, or held-out data, as samples that the model reads.
#pragma once

#include <string>
#include <vector>

#include "framework/checkpoint/reader.h"
#include "framework/config/config.h"
#include "framework/train/inspect.h"

namespace choir {

/// At most one of the three; with none, one held-out sample.
struct InspectInput {
  std::vector<std::string> texts, images;  ///< images: files, or folders of them
  std::vector<std::string> sources;  ///< of encoder-decoders: of each text its source, as texts_of_source() reads it
  std::int64_t held_out = 0;
};

struct InspectSamples {
  std::vector<InspectedSample> samples;
  std::vector<std::string> labels;               ///< of each: "In the beginning"
  std::vector<std::vector<std::string>> tokens;  ///< of each, for the positions looked at; empty for images
  /// Likewise, of what an encoder reads.
  std::vector<std::vector<std::string>> source_tokens, second_source_tokens;
  std::vector<std::string> notes;  ///< what of the input is not looked at
};

constexpr std::int64_t most_inspected = 16;

/// `config` is that of the checkpoint. Throws ConfigError for input that the model does not read.
InspectSamples inspect_samples(const InspectInput&, const Config& config, const CheckpointReader&);

}  // namespace choir
