// Files of lines, each of which is an item of one or two texts, to a token file: what is alike for pairs and for texts
// with a class.
#pragma once

#include <string_view>

#include "framework/data/prepare.h"
#include "framework/data/token_file_writer.h"

namespace choir {

struct PrepareLinesOptions {
  std::vector<std::string> inputs;  ///< text files
  std::string output;               ///< the token file; an existing one is replaced when the new one is whole
  TokenizerConfig tokenizer;        ///< its vocabulary: the number of tokens to train; its model is not read here
  std::optional<Tokenizer> given;   ///< to use, instead of training one as `tokenizer` says
};

struct LineItem {
  std::vector<std::string_view> texts;  ///< a document each
  std::int32_t label = -1;              ///< of its class; negative: it has none
};

/// Throws ConfigError for what is known to be wrong before a file is read: all problems at once.
void check_lines(const PrepareLinesOptions&);

/// Writes the items in an order drawn at random by `key`, always the same one, so that any stretch of them is like the
/// whole. `describe` tells the writer what they are. Throws ConfigError for a tokenizer that cannot be made; Error if
/// the disk is full or fails.
PrepareResult write_lines(const PrepareLinesOptions&, const std::vector<LineItem>&, std::uint64_t key,
                          const std::function<void(TokenFileWriter&)>& describe,
                          const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
