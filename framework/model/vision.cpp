// A model of images: squares of pixels are the positions of a sequence, each sees all others, and the head tells the
// classes of whole images apart. Dosovitskiy et al. 2020 (ViT), arXiv 2010.11929.

#include "framework/model/families.h"
#include "framework/model/parts.h"

namespace choir {

kernels::Band vision_band(const ModelConfig& config) { return kernels::window_band(config.attention.window); }

std::vector<PartSpec> vision_parts(const ModelConfig& config, Recompute recompute) {
  std::vector<PartSpec> parts{image_stem_part(config)};
  for (PartSpec& block : block_parts(config, vision_band(config), recompute)) parts.push_back(std::move(block));
  parts.push_back(pooled_head_part(config));
  return parts;
}

}  // namespace choir
