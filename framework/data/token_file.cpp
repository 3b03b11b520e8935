#include "framework/data/token_file.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <mutex>
#include <utility>

#include "framework/data/digest.h"
#include "framework/data/file.h"
#include "framework/data/file_seal.h"
#include "framework/data/hdf5_file.h"

namespace choir {
namespace {

// The contents of a token file that HDF5 reads.
struct Contents {
  std::int64_t format_version, text_bytes, end_of_document, pairs, triples;
  std::string tokens_digest, tokenizer_kind, tokenizer_digest;
  std::vector<char> tokenizer_model;
  std::vector<std::int32_t> token_bytes;
  std::vector<std::int64_t> document_offsets;
  std::vector<std::int32_t> labels;
  std::vector<char> class_names;
  Hdf5Extent tokens;
};

Contents read_contents(const File& opened, std::uint64_t file_bytes) {
  const Hdf5Silence silence;
  const Hdf5Handle file = open_hdf5(opened);
  const bool labelled = H5Lexists(file, "labels", H5P_DEFAULT) > 0;
  return {.format_version = read_integer_attribute(file, "format_version"),
          .text_bytes = read_integer_attribute(file, "text_bytes"),
          .end_of_document = read_integer_attribute(file, "end_of_document"),
          .pairs = H5Aexists(file, "pairs") > 0 ? read_integer_attribute(file, "pairs") : 0,
          .triples = H5Aexists(file, "triples") > 0 ? read_integer_attribute(file, "triples") : 0,
          .tokens_digest = read_string_attribute(file, "tokens_digest"),
          .tokenizer_kind = read_string_attribute(file, "tokenizer_kind"),
          .tokenizer_digest = read_string_attribute(file, "tokenizer_digest"),
          .tokenizer_model = read_dataset<char>(file, "tokenizer_model", H5T_NATIVE_UINT8, file_bytes),
          .token_bytes = read_dataset<std::int32_t>(file, "token_bytes", H5T_NATIVE_INT32, file_bytes),
          .document_offsets = read_dataset<std::int64_t>(file, "document_offsets", H5T_NATIVE_INT64, file_bytes),
          .labels = labelled ? read_dataset<std::int32_t>(file, "labels", H5T_NATIVE_INT32, file_bytes)
                             : std::vector<std::int32_t>{},
          .class_names =
              labelled ? read_dataset<char>(file, "class_names", H5T_NATIVE_UINT8, file_bytes) : std::vector<char>{},
          .tokens = hdf5_extent(open_dataset(file, "tokens"), file_bytes)};
}

// Why the parts of a token file do not fit together; empty if they do.
std::string contradiction(const Contents& c, const FileSeal& seal) {
  if (c.format_version != FileSeal::format) {
    return fmt::format("the attribute format_version is {}, and the leading block says {}", c.format_version,
                       +FileSeal::format);
  }
  if (c.tokens.offset != seal.elements_offset || c.tokens.bytes() != seal.elements_bytes) {
    return fmt::format("the dataset tokens is {} bytes at {}, and the leading block says {} bytes at {}",
                       c.tokens.bytes(), c.tokens.offset, seal.elements_bytes, seal.elements_offset);
  }
  const std::uint64_t element = c.token_bytes.size() <= 65536 ? 2 : 4;
  if (c.tokens.element_bytes != element || c.tokens.offset % element != 0) {
    return fmt::format("with a vocabulary of {} a token takes {} bytes, and here it takes {} at {}",
                       c.token_bytes.size(), element, c.tokens.element_bytes, c.tokens.offset);
  }
  const std::vector<std::int64_t>& offsets = c.document_offsets;
  if (offsets.size() < 2) return "it holds no document";
  if (offsets.front() != 0) return fmt::format("document 0 begins at token {}", offsets.front());
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] <= offsets[i - 1]) {
      return fmt::format("document {} begins at token {} and ends at token {}", i - 1, offsets[i - 1], offsets[i]);
    }
  }
  if (offsets.back() != static_cast<std::int64_t>(c.tokens.count)) {
    return fmt::format("the last document ends at token {} of {}", offsets.back(), c.tokens.count);
  }
  if (c.pairs != 0 && offsets.size() - 1 != 2 * static_cast<std::uint64_t>(c.pairs))
    return fmt::format("there are {} documents for {} pairs", offsets.size() - 1, c.pairs);
  if (c.triples != 0 && offsets.size() - 1 != 3 * static_cast<std::uint64_t>(c.triples))
    return fmt::format("there are {} documents for {} triples", offsets.size() - 1, c.triples);
  if (!c.labels.empty() && c.labels.size() != offsets.size() - 1)
    return fmt::format("there are {} classes for {} documents", c.labels.size(), offsets.size() - 1);
  const std::int64_t classes = std::ranges::count(c.class_names, '\n');
  for (const std::int32_t label : c.labels)
    if (label < 0 || label >= classes)
      return fmt::format("a document is of class {}, and there are {}", label, classes);
  return "";
}

std::string contradiction(const Contents& c, const Tokenizer& tokenizer) {
  if (tokenizer.digest() != c.tokenizer_digest) {
    return fmt::format("its tokenizer has digest {}, and {} was written", tokenizer.digest(), c.tokenizer_digest);
  }
  if (tokenizer.vocabulary() != static_cast<std::int64_t>(c.token_bytes.size()) ||
      tokenizer.end_of_document() != c.end_of_document) {
    return fmt::format("its tokenizer has {} tokens, {} to end a document, and {} and {} were written",
                       tokenizer.vocabulary(), tokenizer.end_of_document(), c.token_bytes.size(), c.end_of_document);
  }
  for (std::int32_t token = 0; token < tokenizer.vocabulary(); ++token) {
    if (tokenizer.byte_length(token) != c.token_bytes[static_cast<std::size_t>(token)]) {
      return fmt::format("token {} stands for {} bytes of text, and {} was written", token,
                         tokenizer.byte_length(token), c.token_bytes[static_cast<std::size_t>(token)]);
    }
  }
  return "";
}

// Of all tokens; `read(first, tokens)` reads some of them.
template <class Read>
std::string digest_of(std::int64_t num_tokens, Read&& read) {
  Digest digest;
  std::vector<std::int32_t> piece(1 << 16);
  for (std::int64_t first = 0; first < num_tokens; first += static_cast<std::int64_t>(piece.size())) {
    piece.resize(static_cast<std::size_t>(std::min<std::int64_t>(num_tokens - first, 1 << 16)));
    read(first, std::span(piece));
    digest.add(std::span<const std::int32_t>(piece));
  }
  return digest.text();
}

ConfigError inconsistent(const std::string& path, const std::string& why) {
  return ConfigError({.what = "token file " + path + ": its parts do not fit together",
                      .why = why,
                      .fix = "write it again with choir prepare"});
}

}  // namespace

struct TokenFile::Source {
  File file;
  FileStamp stamp;        // of the file when its tokens were last known to be those it was opened with
  std::mutex mutex = {};  // of `stamp`
};

TokenFile::TokenFile(const std::string& path) : path_(path) {
  std::vector<Problem> problems = check_readable("data.path", path);
  for (Problem& problem : problems)
    if (problem.fix.empty()) problem.fix = "choir prepare CONFIG FILES ... writes it";
  throw_if_any(problems);
  File file = File::open(path);
  const FileStamp stamp = file.stamp();
  const FileSeal seal = check_seal(file, token_file_kind);
  Contents contents;
  try {
    contents = read_contents(file, seal.file_bytes);
  } catch (const Hdf5Failure& failure) {
    throw inconsistent(path, std::string("HDF5: ") + failure.what());
  }
  if (const std::string why = contradiction(contents, seal); !why.empty()) throw inconsistent(path, why);
  tokenizer_ =
      Tokenizer::load(contents.tokenizer_kind, {contents.tokenizer_model.data(), contents.tokenizer_model.size()},
                      "tokenizer of token file " + path);
  if (const std::string why = contradiction(contents, tokenizer_); !why.empty()) throw inconsistent(path, why);

  document_offsets_ = std::move(contents.document_offsets);
  labels_ = std::move(contents.labels);
  class_names_ = lines_of(contents.class_names);
  num_tokens_ = static_cast<std::int64_t>(contents.tokens.count);
  text_bytes_ = contents.text_bytes;
  documents_of_item_ = contents.triples > 0 ? 3 : contents.pairs > 0 ? 2 : 1;
  tokens_digest_ = std::move(contents.tokens_digest);
  tokens_offset_ = contents.tokens.offset;
  wide_ = contents.tokens.element_bytes == 4;
  source_ = std::shared_ptr<Source>(new Source{.file = std::move(file), .stamp = stamp});
}

void TokenFile::read(std::int64_t first, std::span<std::int32_t> tokens) const {
  read_raw(first, tokens);
  check_unchanged();
  const auto size = static_cast<std::uint32_t>(vocabulary());
  const auto outside = [size](std::int32_t token) { return static_cast<std::uint32_t>(token) >= size; };
  if (std::ranges::count_if(tokens, outside) == 0) return;
  const auto found = std::ranges::find_if(tokens, outside);
  throw ConfigError({.what = fmt::format("token file {}: token {} is {}, beyond its vocabulary of {} tokens", path_,
                                         first + (found - tokens.begin()), *found, vocabulary()),
                     .why = "the file was damaged after it was written",
                     .fix = "write it again with choir prepare"});
}

void TokenFile::read_raw(std::int64_t first, std::span<std::int32_t> tokens) const {
  assert(first >= 0 && first + static_cast<std::int64_t>(tokens.size()) <= num_tokens_);
  // Narrow tokens are read into the second half of their place and widened from the front.
  const std::size_t element = wide_ ? 4 : 2;
  char* const end = reinterpret_cast<char*>(tokens.data() + tokens.size());
  const std::span<char> bytes(end - tokens.size() * element, end);
  const std::size_t count = source_->file.read(tokens_offset_ + static_cast<std::uint64_t>(first) * element, bytes);
  std::ranges::fill(bytes.subspan(count), '\0');  // the file was cut: check_unchanged() says so
  if (wide_) return;
  std::array<std::uint16_t, 64> narrow;
  for (std::size_t i = 0; i < tokens.size(); i += narrow.size()) {
    const std::size_t block = std::min(narrow.size(), tokens.size() - i);
    std::memcpy(narrow.data(), bytes.data() + i * element, block * element);
    std::copy_n(narrow.begin(), block, tokens.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void TokenFile::check_unchanged() const {
  const std::lock_guard lock(source_->mutex);
  const FileStamp now = source_->file.stamp();
  if (now == source_->stamp) return;
  std::string why = fmt::format("it had {} bytes, and has {} now", source_->stamp.bytes, now.bytes);
  if (now.bytes == source_->stamp.bytes) {
    const std::string digest =
        digest_of(num_tokens_, [this](std::int64_t first, std::span<std::int32_t> tokens) { read_raw(first, tokens); });
    if (digest == tokens_digest_ && source_->file.stamp() == now) {  // the same bytes were written, or only the time
      source_->stamp = now;
      return;
    }
    why = fmt::format("the digest of its tokens is {}, and was {} when the file was opened", digest, tokens_digest_);
  }
  throw Error({.what = "token file " + path_ + " was written to while it was in use",
               .why = why,
               .fix = "put the file with the old tokens back and go on with --resume; to replace a token file that is "
                      "in use, write the new one beside it and rename it, as choir prepare does"});
}

void TokenFile::verify() const {
  const std::string digest =
      digest_of(num_tokens_, [this](std::int64_t first, std::span<std::int32_t> tokens) { read(first, tokens); });
  if (digest == tokens_digest_) return;
  throw ConfigError({.what = "token file " + path_ + ": its tokens are damaged",
                     .why = "their digest is " + digest + ", and " + tokens_digest_ + " was written",
                     .fix = "write it again with choir prepare"});
}

std::vector<Problem> check_fits(const Tokenizer& of, const std::string& owner, const ModelConfig& model,
                                const TokenizerConfig& wanted) {
  const auto another = [&](const char* key, const auto& has, const auto& asked) {
    return std::vector<Problem>{
        {.what = fmt::format("{} was made with {} = {}, not {}", owner, key, has, asked),
         .why = "the same token id means another text",
         .fix = fmt::format("set {} to {}, or choir prepare the text with another tokenizer", key, has)}};
  };
  if (of.kind() != name_of(wanted.kind)) return another("data.tokenizer.kind", of.kind(), name_of(wanted.kind));
  if (wanted.vocabulary != 0 && of.vocabulary() != wanted.vocabulary)
    return another("data.tokenizer.vocabulary", of.vocabulary(), wanted.vocabulary);
  if (of.vocabulary() <= model.text_vocabulary()) return {};
  if (of.vocabulary() == model.vocabulary)
    return {{.what = fmt::format("model.vocabulary = {} leaves no id for the mask token beside the {} tokens of {}",
                                 model.vocabulary, of.vocabulary(), owner),
             .why = "the last id of an encoder is its mask token, which is not a token of text",
             .fix = fmt::format("set model.vocabulary to {} or more, or choir prepare with fewer tokens",
                                of.vocabulary() + 1)}};
  return {{.what = fmt::format("model.vocabulary = {} is less than the {} tokens of {}", model.vocabulary,
                               of.vocabulary(), owner),
           .why = "ids beyond the vocabulary have no embedding",
           .fix = fmt::format("set model.vocabulary to {} or more, or choir prepare with fewer tokens",
                              of.vocabulary() + model.vocabulary - model.text_vocabulary())}};
}

std::vector<Problem> check_fits(const TokenFile& file, const ModelConfig& model, const TokenizerConfig& tokenizer) {
  return check_fits(file.tokenizer(), "data.path = " + file.path(), model, tokenizer);
}

std::vector<Problem> check_tokenizer(const TokenFile& file, const std::string& expected,
                                     const std::string& checkpoint) {
  if (file.tokenizer().digest() == expected) return {};
  return {{.what = fmt::format("data.path = {} was made by tokenizer {}, and the checkpoint {} by tokenizer {}",
                               file.path(), file.tokenizer().digest(), checkpoint, expected),
           .why = "the same token id means another text",
           .fix = fmt::format("make a token file with the tokenizer of the checkpoint: choir prepare CONFIG text files "
                              "... data.tokenizer.model={} data.path=OTHER.h5",
                              shell_word(checkpoint))}};
}

}  // namespace choir
