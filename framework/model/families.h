// The families of models. A new one is a file with its list of parts and a line here.
#pragma once

#include <vector>

#include "framework/model/model_config.h"
#include "framework/model/part.h"

namespace choir {

/// The parts of the model, in the order of forward. `recompute`: blocks keep their inputs only, and backward runs their
/// forward again.
std::vector<PartSpec> make_parts(const ModelConfig&, bool recompute);

/// make_parts().size(), without making them: the sizes may be absurd.
std::int64_t num_parts(const ModelConfig&);

/// All parameters of the model as one rank would hold them, declared and not allocated: the names and shapes that all
/// ranks agree on.
ParameterStore all_parameters(const ModelConfig&);

std::vector<PartSpec> decoder_parts(const ModelConfig&, bool recompute);  // GPT, Llama: decoder.cpp

/// Floating-point operations of one training step on `sequences` sequences: 6 a parameter in a matrix product and
/// token, of the experts those that a token chooses and those shared, plus attention, of which the causal half counts.
/// The model's own work: recomputation and padding do not count.
double model_flops(const ModelConfig&, std::int64_t sequences);

}  // namespace choir
