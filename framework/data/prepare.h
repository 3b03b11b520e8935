// Text files to a token file, in memory that does not grow with the corpus.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "framework/data/data_config.h"

namespace choir {

struct PrepareOptions {
  std::vector<std::string> inputs;  ///< text files; each becomes one document
  std::string output;               ///< the token file; one that is there is replaced when the new one is whole
  TokenizerConfig tokenizer;        ///< its vocabulary: the number of tokens to train
};

struct PrepareProgress {
  const char* stage = "";                        ///< "training the tokenizer", "tokenizing", "writing"
  std::int64_t bytes_done = 0, bytes_total = 0;  ///< of text
  std::int64_t tokens = 0;
};

struct PrepareResult {
  std::int64_t documents = 0, tokens = 0, text_bytes = 0, vocabulary = 0;
  std::string tokenizer_digest;
  std::vector<std::string> notes;  ///< what was left out, and why: one line each
};

/// `progress` is called about once per MB of text, and when a stage begins.
/// Throws ConfigError for inputs that cannot be read (all of them are named), for a tokenizer that cannot be had, and
/// for an output that is no place for a token file; Error where the disk is full or fails, and then nothing is left of
/// it.
PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
