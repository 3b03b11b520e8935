// Text files to a token file, in memory that does not grow with the corpus.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "framework/core/error.h"
#include "framework/data/tokenizer.h"

namespace choir {

struct PrepareOptions {
  std::vector<std::string> inputs;  ///< text files; each becomes one document
  std::string output;               ///< the token file; an existing one is replaced when the new one is whole
  TokenizerConfig tokenizer;        ///< its vocabulary: the number of tokens to train; its model is not read here
  std::optional<Tokenizer> given;   ///< to use, instead of training one as `tokenizer` says
  bool binary = false;              ///< prepare files that do not look like text, byte for byte
};

struct PrepareProgress {
  const char* stage = "";                        ///< "training the tokenizer", "tokenizing", "writing"
  std::int64_t bytes_done = 0, bytes_total = 0;  ///< of text
  std::int64_t tokens = 0;
};

struct PrepareResult {
  std::int64_t documents = 0, tokens = 0, text_bytes = 0, vocabulary = 0;
  std::string tokenizer_digest;
  /// What is unusual about the files and how it was handled, one line each: empty files, files that look like another
  /// encoding or format (text_kind.h), files with the text of another one, temporary files that were removed.
  std::vector<std::string> notes;
};

/// The first few problems of many, and how many there are besides.
class ProblemList {
 public:
  void add(Problem);
  void add_all(const std::vector<Problem>& problems) {
    for (const Problem& problem : problems) add(problem);
  }
  void throw_if_any();

 private:
  static constexpr std::int64_t most = 10;
  std::vector<Problem> problems_;
  std::int64_t count_ = 0;
};

/// Why a text file cannot be prepared; with `binary`, it need not look like text.
std::vector<Problem> check_text(const std::string& path, bool binary);
/// Why no tokenizer can be trained as `tokenizer` says.
std::vector<Problem> check_tokenizer_training(const TokenizerConfig& tokenizer);

/// `progress` is called about once per MB of text, and when a stage begins.
/// Throws ConfigError for inputs that cannot be read or are not text (all of them are named), for a tokenizer that
/// cannot be made, and for an output that cannot be a token file; Error if the disk is full or fails, after removing
/// the unfinished output.
PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
