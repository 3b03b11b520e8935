// The parts that families of text models share.
#pragma once

#include <vector>

#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "kernels/band.h"

namespace choir {

/// An embedding, config.layers blocks and a head. `band`: the positions that a token sees, from its own.
std::vector<PartSpec> text_parts(const ModelConfig& config, const kernels::Band& band, bool recompute);

}  // namespace choir
