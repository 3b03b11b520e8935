// The parts that families of models share.
#pragma once

#include <vector>

#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "framework/nn/block.h"
#include "framework/nn/convolution_stem.h"
#include "kernels/band.h"

namespace choir {

/// What all parts read of the configuration. `band`: the positions that one sees, from its own; `positions`: the most
/// there are; `branches`: how many the model adds to the residual stream.
BlockShape block_shape(const ModelConfig& config, const kernels::Band& band, std::int64_t positions,
                       std::int64_t branches, bool has_experts);
VocabularyTable token_table(const ModelConfig& config);
/// Of `positions` positions, how many the learned embedding has: all or none.
LearnedPositions learned_positions(const ModelConfig& config, std::int64_t positions);
Norm make_norm(const std::string& name, const ModelConfig& config, const TensorShare& share, ParameterStore& store);

std::unique_ptr<Part> make_block(const std::string& name, const BlockShape& shape, const TensorShare& share,
                                 ParameterStore& store);
/// A part around a part, of which only the input is saved: backward runs its forward again.
std::unique_ptr<Part> recomputed(std::unique_ptr<Part> part);

/// config.layers blocks. `band`: the positions that one sees, from its own.
std::vector<PartSpec> block_parts(const ModelConfig& config, const kernels::Band& band, Recompute recompute);

/// Convolutions until a square is a pixel; each has twice the channels of the one before, the last one the model's
/// width.
ConvolutionShape convolution_shape(const ModelConfig&);

PartSpec token_embedding_part(const ModelConfig& config);
/// Of squares, or of convolutions.
PartSpec image_stem_part(const ModelConfig& config);
PartSpec pooled_head_part(const ModelConfig& config);
PartSpec token_head_part(const ModelConfig& config);

/// An embedding of tokens, block_parts() and a head over the vocabulary.
std::vector<PartSpec> text_parts(const ModelConfig& config, const kernels::Band& band, Recompute recompute);

}  // namespace choir
