// Texts with their classes, a line each, to a token file with labels.
#pragma once

#include "framework/data/prepare.h"

namespace choir {

struct PrepareLabelledOptions {
  std::vector<std::string> inputs;  ///< text files; a line is the class, a tab and the text, which makes one document
  std::string output;               ///< the token file; an existing one is replaced when the new one is whole
  TokenizerConfig tokenizer;        ///< its vocabulary: the number of tokens to train; its model is not read here
  std::optional<Tokenizer> given;   ///< to use, instead of training one as `tokenizer` says
  std::int64_t classes = 0;         ///< at most
};

struct PrepareLabelledResult {
  PrepareResult text;
  std::vector<std::string> class_names;          ///< by label, sorted
  std::vector<std::int64_t> documents_of_class;  ///< by label
};

/// The documents are written in an order drawn at random, always the same one, so that any stretch of them has all
/// classes. Memory: all the text. Throws ConfigError for files that cannot be read, lines without a class or a text,
/// and more classes (all problems at once), and for a tokenizer that cannot be made; Error if the disk is full or
/// fails.
PrepareLabelledResult prepare_labelled(const PrepareLabelledOptions&,
                                       const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
