// An encoder of masked tokens: a token sees those on both sides, and the head finds the tokens that were hidden. Its
// last id is the mask token. Devlin et al. 2018 (BERT), arXiv 1810.04805; the norms are first, as in the decoder.

#include "framework/model/families.h"
#include "framework/model/parts.h"

namespace choir {

kernels::Band encoder_band(const ModelConfig& config) { return kernels::window_band(config.attention.window); }

std::vector<PartSpec> encoder_parts(const ModelConfig& config, Recompute recompute) {
  return text_parts(config, encoder_band(config), recompute);
}

}  // namespace choir
