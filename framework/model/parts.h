// The parts that families of models share.
#pragma once

#include <vector>

#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "framework/nn/convolution_stem.h"
#include "kernels/band.h"

namespace choir {

/// config.layers blocks. `band`: the positions that one sees, from its own.
std::vector<PartSpec> block_parts(const ModelConfig& config, const kernels::Band& band, bool recompute);

/// Convolutions until a square is a pixel; each has twice the channels of the one before, the last one the model's
/// width.
ConvolutionShape convolution_shape(const ModelConfig&);

PartSpec token_embedding_part(const ModelConfig& config);
/// Of squares, or of convolutions.
PartSpec image_stem_part(const ModelConfig& config);
PartSpec pooled_head_part(const ModelConfig& config);

/// An embedding of tokens, block_parts() and a head over the vocabulary.
std::vector<PartSpec> text_parts(const ModelConfig& config, const kernels::Band& band, bool recompute);

}  // namespace choir
