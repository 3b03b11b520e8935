// The token file: a corpus as token ids, with its tokenizer, in HDF5.
//
//   byte 0             512 bytes of text, HDF5's user block (`head -n 5 FILE` shows it): format, size, where the tokens
//                      lie, digest of all bytes that are not tokens; see file_seal.h
//   /tokens            [tokens] uint16, or int32 if the vocabulary is above 65536; contiguous, no filters
//   /document_offsets  [documents + 1] int64: document d is tokens [offset d, offset d+1), end-of-document included
//   /token_bytes       [vocabulary] int32: bytes of text that each token stands for
//   /tokenizer_model   [bytes] uint8: the SentencePiece model
//   /labels            [documents] int32: the class of each document; only in files of labelled texts, as is
//   /class_names       [bytes] uint8: the names of the classes, a line each
//   attributes of /    format_version, text_bytes, tokens_digest, tokenizer_kind, tokenizer_digest, end_of_document,
//                      and in files of pairs: pairs; documents 2 i and 2 i + 1 are then source and target of pair i;
//                      in files of triples: triples; documents 3 i, 3 i + 1 and 3 i + 2 are then source, second source
//                      and target of triple i
//
// Tokens are read when they are needed; the ranks of a node share the system's page cache. They are not mapped into
// memory: reading a mapping of a file that has been truncated ends the process. After each read the file's size and
// time of change are checked, so that no token of a file written to since it was opened is used.
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

/// A token file opened for reading; immutable, any number of threads may read. It does not change if another file gets
/// the path, as with `choir prepare`. Memory: document offsets and tokenizer.
class TokenFile {
 public:
  /// Opens and checks everything but the tokens themselves. Makes HDF5 calls, which one thread must make. Throws
  /// ConfigError for a file that is missing, not a token file, torn, damaged or of another format.
  explicit TokenFile(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  std::int64_t num_documents() const { return static_cast<std::int64_t>(document_offsets_.size()) - 1; }
  /// [documents + 1], ascending, from 0 to num_tokens().
  std::span<const std::int64_t> document_offsets() const { return document_offsets_; }
  std::int64_t text_bytes() const { return text_bytes_; }
  const std::string& tokens_digest() const { return tokens_digest_; }
  /// The class of each document, and the names of the classes; both are empty if the texts have none.
  std::span<const std::int32_t> labels() const { return labels_; }
  const std::vector<std::string>& class_names() const { return class_names_; }
  /// Documents of a pair, 2, or of a triple, 3; 1 if the texts are none.
  std::int64_t documents_of_item() const { return documents_of_item_; }

  const Tokenizer& tokenizer() const { return tokenizer_; }
  std::int64_t vocabulary() const { return tokenizer_.vocabulary(); }

  /// Reads tokens [first, first + tokens.size()). Throws Error if the file has other tokens than when it was opened: if
  /// its size or time of change differs, all tokens are read once to find out. Throws ConfigError for an id outside the
  /// vocabulary, which the constructor does not check.
  void read(std::int64_t first, std::span<std::int32_t> tokens) const;

  /// One pass over all tokens: the digest and the greatest id. Throws ConfigError.
  void verify() const;

 private:
  struct Source;  // the open file
  void read_raw(std::int64_t first, std::span<std::int32_t> tokens) const;
  void check_unchanged() const;

  std::string path_;
  Tokenizer tokenizer_ = Tokenizer::bytes();
  std::vector<std::int64_t> document_offsets_;
  std::vector<std::int32_t> labels_;
  std::vector<std::string> class_names_;
  std::int64_t num_tokens_ = 0, text_bytes_ = 0, documents_of_item_ = 1;
  std::string tokens_digest_;
  std::uint64_t tokens_offset_ = 0;  // in bytes, from the start of the file
  bool wide_ = false;                // int32 tokens, else uint16
  std::shared_ptr<Source> source_;   // shared by copies
};

/// Why a model cannot be trained on a file: another tokenizer than the configuration says, or ids beyond the model's
/// vocabulary. Reads no tokens.
std::vector<Problem> check_fits(const TokenFile& file, const ModelConfig& model, const TokenizerConfig& tokenizer);

/// The same for a tokenizer; `owner` is where it comes from, as the user wrote it: "data.tokenizer.model = a.model".
std::vector<Problem> check_fits(const Tokenizer&, const std::string& owner, const ModelConfig&, const TokenizerConfig&);

/// A problem if the file was made by another tokenizer than that of the checkpoint in folder `checkpoint`, whose digest
/// `expected` is.
std::vector<Problem> check_tokenizer(const TokenFile& file, const std::string& expected, const std::string& checkpoint);

}  // namespace choir
