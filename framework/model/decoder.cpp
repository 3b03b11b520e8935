// A decoder-only transformer (GPT, Llama): a token sees itself and the tokens before it, and predicts the next one.

#include "framework/model/families.h"
#include "framework/model/parts.h"

namespace choir {

kernels::Band decoder_band(const ModelConfig& config) {
  const kernels::Band causal = kernels::causal_band(config.context, config.context, config.attention.window);
  return kernels::with_prefix(causal, config.attention.prefix);
}

std::vector<PartSpec> decoder_parts(const ModelConfig& config, Recompute recompute) {
  return text_parts(config, decoder_band(config), recompute);
}

}  // namespace choir
