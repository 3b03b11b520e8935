// Pairs of texts, a source and its target, to a token file of pairs.
#pragma once

#include "framework/data/prepare.h"

namespace choir {

struct PreparePairsOptions {
  /// Text files with a pair on each line. If the name ends with .jsonl or .json, a line is an object with the strings
  /// "source" and "target"; else it is the source, a tab and the target.
  std::vector<std::string> inputs;
  std::string output;              ///< the token file; an existing one is replaced when the new one is whole
  TokenizerConfig tokenizer;       ///< of both sides; its vocabulary: the number of tokens to train
  std::optional<Tokenizer> given;  ///< to use, instead of training one as `tokenizer` says
};

/// The pairs are written in an order drawn at random, always the same one, so that any stretch of them is like the
/// whole. Memory: all the text. Throws ConfigError for files that cannot be read and lines that are no pair of two
/// texts (all problems at once), and for a tokenizer that cannot be made; Error if the disk is full or fails. The
/// result counts two documents for each pair.
PrepareResult prepare_pairs(const PreparePairsOptions&, const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
