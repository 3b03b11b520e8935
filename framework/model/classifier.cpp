// A classifier of texts: an encoder whose head tells the classes of whole texts apart. Devlin et al. 2018 (BERT), arXiv
// 1810.04805, section 4.1, with the mean over the positions or their first one.

#include "framework/model/families.h"
#include "framework/model/parts.h"

namespace choir {

std::vector<PartSpec> classifier_parts(const ModelConfig& config, Recompute recompute) {
  std::vector<PartSpec> parts{token_embedding_part(config)};
  for (PartSpec& block : block_parts(config, encoder_band(config), recompute)) parts.push_back(std::move(block));
  parts.push_back(pooled_head_part(config));
  return parts;
}

}  // namespace choir
