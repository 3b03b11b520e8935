// Text to token ids and back, losslessly: decode(encode(text)) == text for any bytes.
//
// Two kinds. `bytes`: token b is byte b, token 256 ends a document. `sentencepiece`: byte-pair encoding (Sennrich,
// Haddow, Birch, arXiv:1508.07909) by SentencePiece (Kudo, Richardson, arXiv:1808.06226), without any normalization.
// Text is cut into words first: runs of spaces and line breaks with what follows them. A word that pieces cannot spell
// exactly (invalid UTF-8, a literal U+2581) is spelt in bytes. So a token always stands for the same bytes of text, and
// a loss in bits per byte is exact.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "framework/data/data_config.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace choir {

/// Tokens of words already seen, in bounded memory. It speeds encoding up and changes no result.
class WordCache {
 public:
  const std::vector<std::int32_t>* find(std::string_view word) const;
  /// Long words are not kept; a full cache is emptied.
  void insert(std::string_view word, const std::vector<std::int32_t>& tokens);

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, std::vector<std::int32_t>, Hash, std::equal_to<>> words_;
};

/// An immutable value; copies share the model. Any number of threads may use one.
class Tokenizer {
 public:
  static Tokenizer bytes();

  /// Trains byte-pair encoding with config.vocabulary tokens on `sample`. The same sample gives the same tokenizer.
  /// Words of more than 1024 characters are cut, and 512 Ki characters of such words are used, evenly spread, so that
  /// text without spaces takes only minutes. Throws ConfigError if the sample has too little text for that many tokens,
  /// or needs more tokens.
  static Tokenizer train(const TokenizerConfig& config, std::string_view sample);

  /// The tokenizer that serialized() came from, or, for kind "sentencepiece", any SentencePiece model that has a token
  /// for each byte and one that ends a text. The model's own normalization and dummy prefix are turned off.
  /// `source` names the origin of the bytes in errors. Throws ConfigError.
  static Tokenizer load(const std::string& kind, std::string_view serialized, const std::string& source);

  std::vector<std::int32_t> encode(std::string_view text) const;

  /// Appends the tokens of the words of `text` that are known to be complete, and returns how many bytes those are;
  /// all of them if `last`. Passing the rest again at the head of the next piece gives the tokens of the whole,
  /// however it was cut. The rest is never longer than max_word_bytes.
  std::size_t encode_words(std::string_view text, bool last, WordCache& cache, std::vector<std::int32_t>& tokens) const;
  static constexpr std::size_t max_word_bytes = 1 << 16;  ///< longer words are cut

  /// The end-of-document token stands for no text. Throws Error for an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> tokens) const;

  const std::string& kind() const { return kind_; }
  std::int64_t vocabulary() const { return static_cast<std::int64_t>(text_.size()); }
  std::int32_t end_of_document() const { return end_of_document_; }
  /// Bytes of text that a token stands for; 0 for the end of a document.
  std::int32_t byte_length(std::int32_t token) const { return static_cast<std::int32_t>(text_.at(token).size()); }
  /// The SentencePiece model; empty for kind "bytes".
  const std::string& serialized() const { return serialized_; }
  /// Of kind and model, as sixteen hexadecimal digits: equal digests give equal tokens.
  const std::string& digest() const { return digest_; }

 private:
  Tokenizer(std::string kind, std::string serialized);
  void encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const;

  std::string kind_, serialized_, digest_;
  std::int32_t end_of_document_ = 0;
  std::vector<std::string> text_;                  // [vocabulary]: the bytes that each token stands for
  std::array<std::int32_t, 256> byte_token_ = {};  // the token that stands for just this byte
  std::shared_ptr<const sentencepiece::SentencePieceProcessor> processor_;  // null for kind "bytes"
};

}  // namespace choir
