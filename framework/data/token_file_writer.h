// Writes a token file (token_file.h) token by token, in memory that does not grow with the corpus. The same tokens and
// tokenizer give the same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/digest.h"
#include "framework/data/file.h"
#include "framework/data/tokenizer.h"

namespace choir {

/// The file appears under its name only when it is whole and on the disk; until then the tokens are in a nameless file
/// beside it, because HDF5 must know how many there are before the first is written. A writer that is destroyed before
/// finish() leaves no file. If there are several writers to one path, the file is the one of the last that finishes.
/// Memory: 1 MB and the document offsets. Throws Error if the disk is full or fails.
class TokenFileWriter {
 public:
  TokenFileWriter(std::string path, Tokenizer tokenizer);

  /// The next tokens of the current document.
  void append(std::span<const std::int32_t> tokens);
  /// Adds the end-of-document token and begins the next document.
  void end_document();
  /// The same for a document of class `label`. All documents have one, or none.
  void end_document(std::int32_t label);
  /// The names of the classes, by label; call it before finish() if documents have classes.
  void set_class_names(std::vector<std::string> names) { class_names_ = std::move(names); }
  /// The documents are pairs, source and target in turn, or triples, source, second source and target; call it before
  /// finish().
  void set_pairs() { documents_of_item_ = 2; }
  void set_triples() { documents_of_item_ = 3; }
  /// Publishes the file, once. The last document has been ended. Makes HDF5 calls.
  void finish();

  std::int64_t num_tokens() const { return num_tokens_; }
  std::int64_t num_documents() const { return static_cast<std::int64_t>(document_offsets_.size()) - 1; }
  std::int64_t text_bytes() const { return text_bytes_; }

 private:
  struct Layout {
    std::uint64_t tokens_offset, document_offsets_offset;
  };
  Layout write_structure(const std::string& path) const;
  void flush();

  std::string path_;
  Tokenizer tokenizer_;
  bool wide_;  // int32 tokens
  std::int64_t documents_of_item_ = 1;
  File spill_;  // the tokens, as they will be in the file
  std::uint64_t spilt_bytes_ = 0;
  std::vector<char> buffer_;  // the bytes to be written to spill_ next
  std::vector<std::int64_t> document_offsets_{0};
  std::vector<std::int32_t> labels_;
  std::vector<std::string> class_names_;
  std::int64_t num_tokens_ = 0, text_bytes_ = 0;
  Digest digest_;
};

}  // namespace choir
