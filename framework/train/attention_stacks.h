// The layers of attention of a model, as people who look into its heads count them.
//
// Most models have one stack of layers, whose queries and keys are of one sequence. An encoder-decoder has three: its
// encoder, its decoder, and the decoder's attention to the source.
#pragma once

#include <string>
#include <vector>

#include "framework/model/model_config.h"
#include "framework/parallel/context.h"

namespace choir {

/// Layers whose maps have the same rows and columns.
struct AttentionStack {
  std::string name;  ///< "layer", "encoder", "decoder", "cross": with the number of a layer in the stack, its name
  std::string before, after;  ///< of the number, in the name of the layer's parameters
  std::int64_t layers = 0;
  TokenStream rows = TokenStream::target;     ///< whose tokens are the queries
  TokenStream columns = TokenStream::target;  ///< whose tokens are read
  bool compares_positions = true;             ///< of queries and keys
  kernels::Band band{};
  kernels::Score score{};

  std::string layer_name(std::int64_t layer) const { return before + std::to_string(layer) + after; }
  bool crosses() const { return name == "cross"; }
  bool is_linear(const ModelConfig& model, std::int64_t layer) const {
    return !crosses() && model.has_linear_attention(layer);
  }
};

/// In the order in which layers are numbered; sums of `layers` are the numbers of their first ones.
std::vector<AttentionStack> attention_stacks(const ModelConfig&);

/// The layers of all of them.
std::int64_t attention_layers(const ModelConfig&);

}  // namespace choir
