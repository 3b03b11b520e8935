#include "framework/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <numeric>

#include "framework/core/error.h"
#include "framework/data/digest.h"

namespace choir {
namespace {

constexpr std::string_view space_symbol = "\xE2\x96\x81";  // U+2581, which SentencePiece writes for a space
constexpr std::uint32_t num_codes = 0x110000;              // of Unicode

// SentencePiece returns statuses, and its log only repeats them. The only way that its header offers to turn the log
// off is an argument of Train(), which is called here with nothing to train on.
void silence_sentencepiece() { static_cast<void>(sentencepiece::SentencePieceTrainer::Train({{"minloglevel", "3"}})); }

struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;  // 0: not UTF-8
};

// The first character of `text`, by RFC 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF.
Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  if (text.empty()) return {};
  if (byte(0) < 0x80) return {byte(0), 1};
  const std::size_t bytes = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || text.size() < bytes) return {};
  std::uint32_t code = byte(0) & (0x7Fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0u) != 0x80u) return {};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < least[bytes] || code >= num_codes || (code >= 0xD800 && code < 0xE000)) return {};
  return {code, bytes};
}

// Which characters of the sample get tokens of their own: the most frequent ones, at most `most`, until only one in
// 20000 is left. The others are spelt in bytes.
std::vector<bool> frequent_characters(std::string_view sample, std::size_t most) {
  std::vector<std::int64_t> count(num_codes, 0);
  std::int64_t total = 0;
  while (!sample.empty()) {
    const Character character = first_character(sample);
    count[character.code] += character.bytes > 0;
    total += character.bytes > 0;
    sample.remove_prefix(std::max<std::size_t>(character.bytes, 1));
  }
  for (const std::uint32_t reserved : {0x00u, 0x2581u, 0x2585u}) count[reserved] = 0;  // SentencePiece uses them itself
  std::vector<std::uint32_t> order;
  for (std::uint32_t code = 0; code < num_codes; ++code) {
    if (count[code] > 0) order.push_back(code);
  }
  std::ranges::stable_sort(order, [&](std::uint32_t a, std::uint32_t b) { return count[a] > count[b]; });

  std::vector<bool> frequent(num_codes, false);
  std::int64_t covered = 0;
  for (std::size_t i = 0; i < std::min(order.size(), most) && covered < total - total / 20000; ++i) {
    frequent[order[i]] = true;
    covered += count[order[i]];
  }
  return frequent;
}

// What SentencePiece is trained on: runs of frequent characters, without line breaks.
//
// Words of more than max_word_characters are cut into pieces. SentencePiece keeps the places of pairs of characters in
// 16 bits and crashes on a word of 32768 characters. The time of its training is proportional to the characters of
// different words times the vocabulary: text has few different words, but all pieces of a genome are different. So at
// most max_pieces of them are used, evenly spread over the sample.
class Lines : public sentencepiece::SentenceIterator {
 public:
  Lines(std::string_view sample, std::vector<bool> frequent) : rest_(sample), frequent_(std::move(frequent)) {
    std::size_t pieces = 0;
    for (std::string_view text = sample; !text.empty();) {
      const Run run = first_run(text);
      pieces += run.is_piece;
      text.remove_prefix(std::max<std::size_t>(run.bytes, 1));
    }
    use_one_in_ = std::max<std::size_t>((pieces + max_pieces - 1) / max_pieces, 1);
    Next();
  }
  bool done() const override { return line_.empty(); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    line_.clear();
    while (line_.empty() && !rest_.empty()) {
      const Run run = first_run(rest_);
      if (!run.is_piece || pieces_seen_++ % use_one_in_ == 0) line_ = rest_.substr(0, run.bytes);
      rest_.remove_prefix(std::max<std::size_t>(run.bytes, 1));  // 0: skip a byte that is not of a frequent character
    }
  }

 private:
  static constexpr std::size_t max_word_characters = 1024, max_pieces = 512;

  struct Run {
    std::size_t bytes = 0;
    bool is_piece = false;  // of a long word
  };

  // The first run of `text`: up to a long word, or the first piece of one. 0 bytes if there is none at its head.
  Run first_run(std::string_view text) const {
    std::size_t end = 0, word = 0, word_characters = 0;
    while (const std::size_t bytes = accepted(text.substr(end))) {
      if (text[end] == ' ') {
        word = end;
        word_characters = 0;
      } else if (++word_characters > max_word_characters) {
        return word > 0 ? Run{word, false} : Run{end, true};
      }
      end += bytes;
    }
    return {end, false};
  }

  // Bytes of the first character of `text` if it is a frequent one, else 0.
  std::size_t accepted(std::string_view text) const {
    const Character character = first_character(text);
    return character.code != '\n' && frequent_[character.code] ? character.bytes : 0;
  }

  std::string_view rest_;
  std::vector<bool> frequent_;
  std::size_t use_one_in_ = 1, pieces_seen_ = 0;
  std::string line_;
};

bool is_break(char c) { return c == ' ' || c == '\n'; }

// Bytes of the first word of `text`, a run of spaces and line breaks and what follows it; 0 if more text could make
// it longer. A word that is too long is cut, if possible between characters.
std::size_t first_word(std::string_view text, bool last) {
  const std::size_t limit = std::min(text.size(), Tokenizer::max_word_bytes);
  std::size_t end = 0;
  while (end < limit && is_break(text[end])) ++end;
  while (end < limit && !is_break(text[end])) ++end;
  if (end == text.size()) return last ? end : 0;
  if (end < limit) return end;
  const auto continues = [&](std::size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0u) == 0x80u; };
  std::size_t cut = end;
  while (end - cut < 3 && continues(cut)) --cut;
  return continues(cut) ? end : cut;
}

// A protocol-buffer message is merged with what is appended to it: the last value of a field counts. Appended to a
// model this sets normalizer_spec (field 3): precompiled_charsmap "" (2), add_dummy_prefix false (3),
// remove_extra_whitespaces false (4), escape_whitespaces true (5).
constexpr std::string_view identity_normalization("\x1A\x08\x12\x00\x18\x00\x20\x00\x28\x01", 10);

}  // namespace

const std::vector<std::int32_t>* WordCache::find(std::string_view word) const {
  const auto found = words_.find(word);
  return found == words_.end() ? nullptr : &found->second;
}

void WordCache::insert(std::string_view word, const std::vector<std::int32_t>& tokens) {
  constexpr std::size_t max_words = 1 << 17, max_kept_bytes = 64;  // about 20 MB
  if (word.size() > max_kept_bytes) return;
  if (words_.size() == max_words) words_.clear();
  words_.emplace(word, tokens);
}

Tokenizer::Tokenizer(std::string kind, std::string serialized)
    : kind_(std::move(kind)), serialized_(std::move(serialized)) {
  Digest digest;
  digest.add(kind_);
  digest.add("\n");
  digest.add(serialized_);
  digest_ = digest.text();
}

Tokenizer Tokenizer::bytes() {
  Tokenizer result("bytes", "");
  std::iota(result.byte_token_.begin(), result.byte_token_.end(), 0);
  for (int byte = 0; byte < 256; ++byte) result.text_.emplace_back(1, static_cast<char>(byte));
  result.text_.emplace_back();
  result.end_of_document_ = 256;
  return result;
}

Tokenizer Tokenizer::train(const TokenizerConfig& config, std::string_view sample) {
  silence_sentencepiece();
  const std::string vocabulary = std::to_string(config.vocabulary);
  constexpr std::int64_t fixed_tokens = 258;  // the bytes, the end of a document, and SentencePiece's "unknown"
  if (config.vocabulary < fixed_tokens + 2) {
    throw ConfigError({.what = "data.tokenizer.vocabulary = " + vocabulary + " is too small",
                       .why = std::to_string(fixed_tokens) + " tokens are for single bytes and for ends of documents",
                       .fix = "set it to 512 or more, or set data.tokenizer.kind to bytes"});
  }
  // At most half of the other tokens for characters, the rest for what is made of them.
  const auto most_characters = static_cast<std::size_t>(config.vocabulary - fixed_tokens) / 2;
  Lines lines(sample, frequent_characters(sample, most_characters));
  std::string serialized;
  const sentencepiece::util::Status status = sentencepiece::SentencePieceTrainer::Train(
      {{"minloglevel", "3"},
       {"model_type", "bpe"},
       {"vocab_size", vocabulary},
       {"normalization_rule_name", "identity"},
       {"add_dummy_prefix", "false"},
       {"remove_extra_whitespaces", "false"},
       {"byte_fallback", "true"},
       {"split_digits", "true"},
       {"character_coverage", "1.0"},
       {"max_sentence_length", std::to_string(std::max<std::size_t>(sample.size(), 1))},
       {"unk_id", "0"},
       {"eos_id", "1"},
       {"bos_id", "-1"},
       {"pad_id", "-1"},
       {"num_threads", "1"}},
      &lines, &serialized);
  if (!status.ok()) {
    throw ConfigError(
        {.what = "data.tokenizer.vocabulary = " + vocabulary +
                 ": a tokenizer of this size cannot be trained on a sample of " + std::to_string(sample.size()) +
                 " bytes",
         .why = "SentencePiece: " + status.ToString(),
         .fix = "change data.tokenizer.vocabulary as it says, give more text, or set data.tokenizer.kind to bytes"});
  }
  return load("sentencepiece", serialized, "the tokenizer just trained");
}

Tokenizer Tokenizer::load(const std::string& kind, std::string_view serialized, const std::string& source) {
  if (kind == "bytes") return bytes();
  if (kind != "sentencepiece") {
    throw ConfigError(
        {.what = source + ": unknown kind of tokenizer '" + kind + "'", .fix = "use bytes or sentencepiece"});
  }
  silence_sentencepiece();
  std::string model(serialized);
  if (!model.ends_with(identity_normalization)) model += identity_normalization;
  auto processor = std::make_shared<sentencepiece::SentencePieceProcessor>();
  const sentencepiece::util::Status status = processor->LoadFromSerializedProto(model);
  if (serialized.empty() || !status.ok()) {
    throw ConfigError({.what = source + ": not a SentencePiece model",
                       .why = serialized.empty() ? "it is empty" : "SentencePiece: " + status.ToString(),
                       .fix = "name a .model file of spm_train, a token file, a checkpoint or a run"});
  }

  Tokenizer result("sentencepiece", std::move(model));
  const int pieces = processor->GetPieceSize();
  int bytes_found = 0;
  for (int id = 0; id < pieces; ++id) {
    std::string text;
    if (processor->IsByte(id)) {  // "<0x0A>"
      const int byte = std::stoi(processor->IdToPiece(id).substr(3, 2), nullptr, 16);
      text.assign(1, static_cast<char>(byte));
      result.byte_token_[static_cast<std::size_t>(byte)] = id;
      ++bytes_found;
    } else if (!processor->IsControl(id) && !processor->IsUnknown(id)) {
      text = processor->IdToPiece(id);
      for (std::size_t at; (at = text.find(space_symbol)) != std::string::npos;)
        text.replace(at, space_symbol.size(), 1, ' ');
    }
    result.text_.push_back(std::move(text));
  }
  result.end_of_document_ = processor->eos_id() >= 0 ? processor->eos_id() : processor->bos_id();
  if (bytes_found != 256) {
    throw ConfigError(
        {.what = source + ": the model has tokens for " + std::to_string(bytes_found) + " of the 256 bytes",
         .why = "without them there are texts that it cannot represent",
         .fix = "train it with spm_train --byte_fallback, or leave data.tokenizer.model empty"});
  }
  if (result.end_of_document_ < 0) {
    throw ConfigError({.what = source + ": the model has no token that ends a text",
                       .why = "this token separates the documents",
                       .fix = "train it with spm_train --eos_id=1, or leave data.tokenizer.model empty"});
  }
  result.processor_ = std::move(processor);
  return result;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  WordCache cache;
  std::vector<std::int32_t> tokens;
  encode_words(text, true, cache, tokens);
  return tokens;
}

std::size_t Tokenizer::encode_words(std::string_view text, bool last, WordCache& cache,
                                    std::vector<std::int32_t>& tokens) const {
  if (!processor_) {
    for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
    return text.size();
  }
  std::size_t done = 0;
  std::vector<std::int32_t> word_tokens;
  while (const std::size_t length = first_word(text.substr(done), last)) {
    const std::string_view word = text.substr(done, length);
    const std::vector<std::int32_t>* found = cache.find(word);
    if (!found) {
      word_tokens.clear();
      encode_word(word, word_tokens);
      cache.insert(word, word_tokens);
      found = &word_tokens;
    }
    tokens.insert(tokens.end(), found->begin(), found->end());
    done += length;
  }
  return done;
}

void Tokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const {
  const sentencepiece::util::Status status = processor_->Encode(word, &tokens);
  if (status.ok() && decode(tokens) == word) return;
  tokens.clear();
  for (const char byte : word) tokens.push_back(byte_token_[static_cast<unsigned char>(byte)]);
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocabulary()) {
      throw Error({.what = "token " + std::to_string(token) + " is outside the vocabulary of " +
                           std::to_string(vocabulary()) + " tokens",
                   .why = "the tokens were made by another tokenizer"});
    }
    text += text_[static_cast<std::size_t>(token)];
  }
  return text;
}

}  // namespace choir
