// Text from a model: one token after another, each drawn from the model's own distribution.
//
//   p = softmax(logits / temperature), of the top_k likeliest tokens, of the fewest that together have top_p
//
// Only tokens of text and the end of a document are drawn. A model may have others: a padded vocabulary, and control
// tokens that no text is encoded as. Their logits mean nothing.
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

/// The tokens of `tokenizer` that stand for text, and the end of a document; ascending.
std::vector<std::int32_t> drawable_tokens(const Tokenizer&);

/// One of `choices`, which is not empty and holds indices of `logits` [V]. `uniform` is in [0, 1). temperature 0: the
/// likeliest. Throws Error if a choice's logit is not finite.
std::int32_t sample_token(std::span<const float> logits, std::span<const std::int32_t> choices, const GenerateConfig&,
                          double uniform);

/// For each token of a text, the positions of its document; the token that ends a document is its last one.
std::vector<kernels::DocumentRange> documents_of(std::span<const std::int32_t> tokens, std::int32_t end_of_document);

/// Continues `prompt` by at most config.tokens tokens, until the end of the document. `emit` gets each new token's text
/// as it comes. When the context is full, its second half is read again as the start of a new one. One rank. Throws
/// ConfigError if the model's vocabulary is smaller than the tokenizer's.
void generate(Trainer&, const Tokenizer&, const GenerateConfig&, const std::function<void(const std::string&)>& emit);

/// Tokens of the text that an encoder-decoder gives for a source, as Sample::source has it, found by a search with
/// config.beam texts; at most config.tokens, and no more than the model's context. One rank.
std::vector<std::int32_t> translate(Trainer&, const Tokenizer&, const GenerateConfig&,
                                    const std::vector<std::int32_t>& source);

/// The texts of a source that is given as `key`: itself, or both of a model with two, with a tab between them. Throws
/// ConfigError if there is no such tab.
std::vector<std::string> texts_of_source(const std::string& key, const std::string& text, const ModelConfig&);

/// The source that `prompt` is, as Sample::source has it: its tokens, and the end of the text. Of a model with two
/// sources it is both. Throws ConfigError if one is empty or too long for the model.
std::vector<std::int32_t> source_of(const std::string& prompt, const Tokenizer&, const ModelConfig&);

}  // namespace choir
