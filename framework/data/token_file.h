// The token file: a corpus as token ids, with its tokenizer, in HDF5.
//
//   byte 0             512 bytes of text, HDF5's user block (`head -n 5 FILE` shows it): format, size, where the tokens
//                      lie, digest of all bytes that are not tokens; see token_file_seal.h
//   /tokens            [tokens] uint16, or int32 where the vocabulary is above 65536; contiguous, no filters
//   /document_offsets  [documents + 1] int64: document d is tokens [offset d, offset d+1), end-of-document included
//   /token_bytes       [vocabulary] int32: bytes of text that each token stands for
//   /tokenizer_model   [bytes] uint8: the SentencePiece model
//   attributes of /    format_version, text_bytes, tokens_digest, tokenizer_kind, tokenizer_digest, end_of_document
//
// Reading maps the tokens into memory, so that ranks of a node share one copy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/core/error.h"
#include "framework/data/tokenizer.h"
#include "framework/model/model_config.h"

namespace choir {

/// A token file opened for reading; immutable, any number of threads may read. Memory: document offsets and tokenizer.
class TokenFile {
 public:
  /// Opens, checks everything but the tokens themselves, and maps them. Makes HDF5 calls, which must all be of one
  /// thread. Throws ConfigError for a file that is missing, not a token file, torn, damaged or of another format.
  explicit TokenFile(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  std::int64_t num_documents() const { return static_cast<std::int64_t>(document_offsets_.size()) - 1; }
  /// [documents + 1], ascending, from 0 to num_tokens().
  std::span<const std::int64_t> document_offsets() const { return document_offsets_; }
  std::int64_t text_bytes() const { return text_bytes_; }
  const std::string& tokens_digest() const { return tokens_digest_; }

  const Tokenizer& tokenizer() const { return tokenizer_; }
  std::int64_t vocabulary() const { return tokenizer_.vocabulary(); }

  /// Copies tokens [first, first + tokens.size()). Throws ConfigError for an id outside the vocabulary, which the
  /// opening does not look for.
  void read(std::int64_t first, std::span<std::int32_t> tokens) const;

  /// One pass over all tokens: the digest and the greatest id. Throws ConfigError.
  void verify() const;

 private:
  std::string path_;
  Tokenizer tokenizer_ = Tokenizer::bytes();
  std::vector<std::int64_t> document_offsets_;
  std::int64_t num_tokens_ = 0, text_bytes_ = 0;
  std::string tokens_digest_;
  std::shared_ptr<const void> mapping_;    // the whole file; shared by copies
  std::span<const std::uint16_t> narrow_;  // the tokens, [num_tokens]; one of the two is empty
  std::span<const std::int32_t> wide_;
};

/// What keeps a model from being trained on a file: another tokenizer than the configuration says, or ids beyond the
/// model's vocabulary. Reads no tokens.
std::vector<Problem> check_fits(const TokenFile& file, const ModelConfig& model, const TokenizerConfig& tokenizer);

/// A problem where the file was made by another tokenizer than the one whose digest `expected` is.
/// `owner` names what expects it: "the checkpoint runs/a/checkpoints/step-00001000".
std::vector<Problem> check_tokenizer(const TokenFile& file, const std::string& expected, const std::string& owner);

}  // namespace choir
