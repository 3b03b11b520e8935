// The layers of attention of a model, as people who look into its heads count them.
//
// Most models have one stack of layers, whose queries and keys are of one sequence. An encoder-decoder has three: its
// encoder, its decoder, and the decoder's attention to the source. If it reads two sources, the encoder's layers are
// two stacks: what they do in the one text and in the other.
#pragma once

#include <string>
#include <vector>

#include "framework/model/model_config.h"
#include "framework/parallel/context.h"

namespace choir {

/// Layers whose maps have the same rows and columns.
struct AttentionStack {
  /// "layer", "encoder", "second_source", "decoder", "cross": with the number of a layer in the stack, its name
  std::string name;
  std::string before, after;  ///< of the number, in the name of the layer's parameters
  std::int64_t layers = 0;
  TokenStream rows = TokenStream::target;     ///< whose tokens are the queries
  TokenStream keys = TokenStream::target;     ///< whose tokens they are compared with
  TokenStream columns = TokenStream::target;  ///< whose tokens are read
  std::int64_t texts = 1, text = 0;           ///< of the sequences of a sample that the layers compute: how many, which
  bool compares_positions = true;             ///< of queries and keys
  kernels::Band band{};
  kernels::Score score{};

  std::string layer_name(std::int64_t layer) const { return before + std::to_string(layer) + after; }
  bool crosses() const { return name == "cross"; }
  bool is_linear(const ModelConfig& model, std::int64_t layer) const {
    return !crosses() && model.has_linear_attention(layer);
  }
  /// The number of what the layers compute of a sample, among their sequences of the batch.
  std::int64_t sequence_of(std::int64_t sample) const { return texts * sample + text; }
};

/// In the order in which layers are numbered; sums of `layers` are the numbers of their first ones.
std::vector<AttentionStack> attention_stacks(const ModelConfig&);

/// The layers of all of them.
std::int64_t attention_layers(const ModelConfig&);

}  // namespace choir
