// The families of models. A new one is a file with its list of parts and a line here.
#pragma once

#include <vector>

#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "framework/nn/recompute_kind.h"
#include "kernels/band.h"
#include "kernels/score.h"

namespace choir {

/// The parts of the model, in the order of forward. `recompute`: of the blocks.
std::vector<PartSpec> make_parts(const ModelConfig&, Recompute recompute);

/// make_parts().size(), without making them: the sizes may be absurd.
std::int64_t num_parts(const ModelConfig&);

/// All parameters of the model as one rank would hold them, declared and not allocated: the names and shapes that all
/// ranks agree on.
ParameterStore all_parameters(const ModelConfig&);

std::vector<PartSpec> decoder_parts(const ModelConfig&, Recompute recompute);  // GPT, Llama: decoder.cpp
kernels::Band decoder_band(const ModelConfig&);
std::vector<PartSpec> encoder_parts(const ModelConfig&, Recompute recompute);  // masked tokens: encoder.cpp
kernels::Band encoder_band(const ModelConfig&);
std::vector<PartSpec> encoder_decoder_parts(const ModelConfig&, Recompute recompute);  // encoder_decoder.cpp
kernels::Band source_band(const ModelConfig&);                                         // of its encoder
std::vector<PartSpec> classifier_parts(const ModelConfig&, Recompute recompute);  // classes of texts: classifier.cpp
std::vector<PartSpec> vision_parts(const ModelConfig&, Recompute recompute);      // classes of images: vision.cpp
kernels::Band vision_band(const ModelConfig&);

/// Which positions of a sequence a token sees, from its own; of a source: source_band().
kernels::Band attention_band(const ModelConfig&);
/// What the product of a query and a key becomes before the softmax.
kernels::Score attention_score(const ModelConfig&);
/// Which heads compute a token of a sequence of `positions` positions.
HeadRouting head_routing(const ModelConfig&, std::int64_t positions);

/// How many texts the encoder of an encoder-decoder reads of a sample: the source, and the second source if there is
/// one (nn/text_rows.h). Of another family 1.
std::int64_t source_texts(const ModelConfig&);

/// Floating-point operations of one training step on `sequences` sequences: 6 a parameter in a matrix product and
/// token, of the experts those that a token chooses and those shared, plus attention, of which the pairs count that see
/// each other, in the heads that compute the query. The model's own work: recomputation and padding do not count.
double model_flops(const ModelConfig&, std::int64_t sequences);

}  // namespace choir
