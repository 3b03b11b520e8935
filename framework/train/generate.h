// Text from a model: one token after another, each drawn from the model's own distribution.
//
//   p = softmax(logits / temperature), of the top_k likeliest tokens, of the fewest that together have top_p
//
// Holtzman et al. 2019, arXiv 1904.09751 (top-p). Random numbers are keyed by (generate.seed, token index): the same
// checkpoint, prompt and seed give the same text.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/tokenizer.h"
#include "framework/train/trainer.h"

namespace choir {

/// The index of one token of `logits` [V]. `uniform` is in [0, 1). temperature 0: the likeliest.
std::int32_t sample_token(std::span<const float> logits, const GenerateConfig&, double uniform);

/// Continues `prompt` by at most config.tokens tokens, until the end of the document. `emit` gets each new token's text
/// as it comes. Where the context is full, the later half of it is read again as a new beginning. One rank.
void generate(Trainer&, const Tokenizer&, const GenerateConfig&, const std::function<void(const std::string&)>& emit);

}  // namespace choir
