#include "framework/data/token_file.h"

#include <fmt/core.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "framework/data/digest.h"
#include "framework/data/file.h"
#include "framework/data/hdf5_file.h"
#include "framework/data/token_file_seal.h"

namespace choir {
namespace {

Hdf5Handle open_dataset(hid_t file, const char* name) {
  return {H5Dopen2(file, name, H5P_DEFAULT), H5Dclose, "H5Dopen2"};
}

// All elements of a dataset that lies within the file, which bounds the memory.
template <class T>
std::vector<T> read_dataset(hid_t file, const char* name, hid_t memory_type, std::uint64_t file_bytes) {
  const Hdf5Handle dataset = open_dataset(file, name);
  std::vector<T> values(hdf5_extent(dataset, file_bytes).count);
  if (!values.empty())
    hdf5_check(H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dread");
  return values;
}

// What HDF5 has to say about a token file.
struct Contents {
  std::int64_t format_version, text_bytes, end_of_document;
  std::string tokens_digest, tokenizer_kind, tokenizer_digest;
  std::vector<char> tokenizer_model;
  std::vector<std::int32_t> token_bytes;
  std::vector<std::int64_t> document_offsets;
  Hdf5Extent tokens;
};

Contents read_contents(const std::string& path, std::uint64_t file_bytes) {
  const Hdf5Silence silence;
  const Hdf5Handle file = open_hdf5(path);
  return {.format_version = read_integer_attribute(file, "format_version"),
          .text_bytes = read_integer_attribute(file, "text_bytes"),
          .end_of_document = read_integer_attribute(file, "end_of_document"),
          .tokens_digest = read_string_attribute(file, "tokens_digest"),
          .tokenizer_kind = read_string_attribute(file, "tokenizer_kind"),
          .tokenizer_digest = read_string_attribute(file, "tokenizer_digest"),
          .tokenizer_model = read_dataset<char>(file, "tokenizer_model", H5T_NATIVE_UINT8, file_bytes),
          .token_bytes = read_dataset<std::int32_t>(file, "token_bytes", H5T_NATIVE_INT32, file_bytes),
          .document_offsets = read_dataset<std::int64_t>(file, "document_offsets", H5T_NATIVE_INT64, file_bytes),
          .tokens = hdf5_extent(open_dataset(file, "tokens"), file_bytes)};
}

// Why the parts of a token file do not fit together; empty where they do.
std::string contradiction(const Contents& c, const TokenFileSeal& seal) {
  if (c.format_version != TokenFileSeal::format) {
    return fmt::format("the attribute format_version is {}, and the leading block says {}", c.format_version,
                       +TokenFileSeal::format);
  }
  if (c.tokens.offset != seal.tokens_offset || c.tokens.bytes() != seal.tokens_bytes) {
    return fmt::format("the dataset tokens is {} bytes at {}, and the leading block says {} bytes at {}",
                       c.tokens.bytes(), c.tokens.offset, seal.tokens_bytes, seal.tokens_offset);
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

ConfigError inconsistent(const std::string& path, const std::string& why) {
  return ConfigError({.what = "token file " + path + ": its parts do not fit together",
                      .why = why,
                      .fix = "write it again with choir prepare"});
}

}  // namespace

TokenFile::TokenFile(const std::string& path) : path_(path) {
  std::vector<Problem> problems = check_readable("data.path", path);
  for (Problem& problem : problems)
    if (problem.fix.empty()) problem.fix = "choir prepare CONFIG text files ... writes it";
  throw_if_any(problems);
  const TokenFileSeal seal = check_seal(path);
  Contents contents;
  try {
    contents = read_contents(path, seal.file_bytes);
  } catch (const Hdf5Failure& failure) {
    throw inconsistent(path, std::string("HDF5: ") + failure.what());
  }
  if (const std::string why = contradiction(contents, seal); !why.empty()) throw inconsistent(path, why);
  tokenizer_ =
      Tokenizer::load(contents.tokenizer_kind, {contents.tokenizer_model.data(), contents.tokenizer_model.size()},
                      "tokenizer of token file " + path);
  if (const std::string why = contradiction(contents, tokenizer_); !why.empty()) throw inconsistent(path, why);

  document_offsets_ = std::move(contents.document_offsets);
  num_tokens_ = static_cast<std::int64_t>(contents.tokens.count);
  text_bytes_ = contents.text_bytes;
  tokens_digest_ = std::move(contents.tokens_digest);
  const std::uint64_t bytes = seal.file_bytes;
  mapping_ = std::shared_ptr<const void>(File::open(path).map(bytes),
                                         [bytes](const void* address) { File::unmap(address, bytes); });
  const char* tokens = static_cast<const char*>(mapping_.get()) + contents.tokens.offset;
  if (contents.tokens.element_bytes == 2) {
    narrow_ = {reinterpret_cast<const std::uint16_t*>(tokens), contents.tokens.count};
  } else {
    wide_ = {reinterpret_cast<const std::int32_t*>(tokens), contents.tokens.count};
  }
}

void TokenFile::read(std::int64_t first, std::span<std::int32_t> tokens) const {
  assert(first >= 0 && first + static_cast<std::int64_t>(tokens.size()) <= num_tokens_);
  const auto at = static_cast<std::size_t>(first);
  if (narrow_.empty()) {
    std::ranges::copy(wide_.subspan(at, tokens.size()), tokens.begin());
  } else {
    std::ranges::copy(narrow_.subspan(at, tokens.size()), tokens.begin());
  }
  const auto outside = [this](std::int32_t token) { return token < 0 || token >= vocabulary(); };
  const auto found = std::ranges::find_if(tokens, outside);
  if (found == tokens.end()) return;
  throw ConfigError({.what = fmt::format("token file {}: token {} is {}, beyond its vocabulary of {} tokens", path_,
                                         first + (found - tokens.begin()), *found, vocabulary()),
                     .why = "the file was damaged after it was written",
                     .fix = "write it again with choir prepare"});
}

void TokenFile::verify() const {
  Digest digest;
  std::vector<std::int32_t> piece(1 << 16);
  for (std::int64_t first = 0; first < num_tokens_; first += static_cast<std::int64_t>(piece.size())) {
    piece.resize(static_cast<std::size_t>(std::min<std::int64_t>(num_tokens_ - first, 1 << 16)));
    read(first, piece);
    digest.add(std::span<const std::int32_t>(piece));
  }
  if (digest.text() == tokens_digest_) return;
  throw ConfigError({.what = "token file " + path_ + ": its tokens are damaged",
                     .why = "their digest is " + digest.text() + ", and " + tokens_digest_ + " was written",
                     .fix = "write it again with choir prepare"});
}

std::vector<Problem> check_fits(const TokenFile& file, const ModelConfig& model, const TokenizerConfig& tokenizer) {
  const auto made_by_another = [&](const char* key, const auto& in_file, const auto& wanted) {
    return std::vector<Problem>{
        {.what = fmt::format("data.path = {} was made with {} = {}, not {}", file.path(), key, in_file, wanted),
         .why = "the same token id means another text",
         .fix = fmt::format("set {} to {}, or write the file again with choir prepare", key, in_file)}};
  };
  if (file.tokenizer().kind() != tokenizer.kind)
    return made_by_another("data.tokenizer.kind", file.tokenizer().kind(), tokenizer.kind);
  if (tokenizer.vocabulary != 0 && file.vocabulary() != tokenizer.vocabulary)
    return made_by_another("data.tokenizer.vocabulary", file.vocabulary(), tokenizer.vocabulary);
  if (file.vocabulary() <= model.vocabulary) return {};
  return {{.what = fmt::format("model.vocabulary = {} is less than the {} tokens of data.path = {}", model.vocabulary,
                               file.vocabulary(), file.path()),
           .why = "ids beyond the vocabulary have no embedding",
           .fix = fmt::format("set model.vocabulary to {} or more, or choir prepare with fewer tokens",
                              file.vocabulary())}};
}

std::vector<Problem> check_tokenizer(const TokenFile& file, const std::string& expected, const std::string& owner) {
  if (file.tokenizer().digest() == expected) return {};
  return {{.what = fmt::format("data.path = {} was made by tokenizer {}, and {} by tokenizer {}", file.path(),
                               file.tokenizer().digest(), owner, expected),
           .why = "the same token id means another text",
           .fix = "choir prepare the text with the tokenizer of " + owner +
                  ", or use the token file that it was trained on"}};
}

}  // namespace choir
