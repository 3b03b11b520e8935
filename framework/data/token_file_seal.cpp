#include "framework/data/token_file_seal.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>

#include "framework/core/error.h"
#include "framework/data/digest.h"

namespace choir {
namespace {

constexpr std::string_view first_words = "choir token file, format ";
constexpr std::string_view hdf5_signature = "\x89HDF\r\n\x1a\n";

std::string block_of(const TokenFileSeal& seal) {
  std::string text =
      fmt::format("{}{}\nfile bytes {}\ntokens at {}\ntokens bytes {}\ndigest of the rest {:016x}\n", first_words,
                  TokenFileSeal::format, seal.file_bytes, seal.tokens_offset, seal.tokens_bytes, seal.digest);
  text.resize(TokenFileSeal::block_bytes - 1, ' ');
  return text + '\n';
}

// The number after `label`, or nothing.
std::optional<std::uint64_t> number_after(std::string_view block, std::string_view label, int base = 10) {
  const std::size_t at = block.find(label);
  if (at == std::string_view::npos) return {};
  std::uint64_t value = 0;
  const char* first = block.data() + at + label.size();
  const auto [end, error] = std::from_chars(first, block.data() + block.size(), value, base);
  return error == std::errc{} && end != first ? std::optional(value) : std::nullopt;
}

std::uint64_t digest_of_rest(const File& file, const TokenFileSeal& seal) {
  Digest digest;
  const std::uint64_t fields[] = {seal.file_bytes, seal.tokens_offset, seal.tokens_bytes};
  digest.add(std::span<const std::uint64_t>(fields));
  std::vector<char> buffer(1 << 16);
  const auto add = [&](std::uint64_t from, std::uint64_t to) {
    while (from < to) {
      const std::size_t count =
          file.read(from, std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), to - from)));
      if (count == 0) return;
      digest.add(std::string_view(buffer.data(), count));
      from += count;
    }
  };
  add(TokenFileSeal::block_bytes, seal.tokens_offset);
  add(seal.tokens_offset + seal.tokens_bytes, seal.file_bytes);
  return digest.value();
}

}  // namespace

TokenFileSeal check_seal(const File& file) {
  const std::string what = "token file " + file.path() + ": ", again = "write it again with choir prepare";
  const std::uint64_t size = file.size();
  std::array<char, TokenFileSeal::block_bytes> bytes = {};
  const std::string_view block(bytes.data(), file.read(0, bytes));
  if (!block.starts_with(first_words)) {
    if (block.starts_with(hdf5_signature)) {
      throw ConfigError(
          {.what = what + "this is an HDF5 file, but not a token file", .fix = "make one with choir prepare"});
    }
    throw ConfigError(
        {.what = what + "this is not a token file (HDF5 with a leading block)",
         .why = block.empty() ? "it is empty" : "it does not begin with '" + std::string(first_words) + "'",
         .fix = "make one from text with choir prepare"});
  }
  const std::optional<std::uint64_t> format = number_after(block, first_words);
  if (format && *format != TokenFileSeal::format) {
    throw ConfigError({.what = what + fmt::format("it is of format {}, and this Choir reads format {}", *format,
                                                  +TokenFileSeal::format),
                       .fix = again});
  }
  if (block.size() < TokenFileSeal::block_bytes) {
    throw ConfigError({.what = what + fmt::format("truncated: it holds {} bytes, and its leading block alone needs {}",
                                                  size, +TokenFileSeal::block_bytes),
                       .fix = again});
  }
  const TokenFileSeal seal{.file_bytes = number_after(block, "file bytes ").value_or(0),
                           .tokens_offset = number_after(block, "tokens at ").value_or(0),
                           .tokens_bytes = number_after(block, "tokens bytes ").value_or(0),
                           .digest = number_after(block, "digest of the rest ", 16).value_or(0)};
  if (block != block_of(seal)) throw ConfigError({.what = what + "its leading block is damaged", .fix = again});
  if (size != seal.file_bytes) {
    throw ConfigError(
        {.what = what + fmt::format("{}: it holds {} bytes, needs {}",
                                    size < seal.file_bytes ? "truncated" : "too long", size, seal.file_bytes),
         .why = "it was cut or changed after it was written",
         .fix = again});
  }
  if (seal.tokens_offset < TokenFileSeal::block_bytes || seal.tokens_offset > size ||
      seal.tokens_bytes > size - seal.tokens_offset || digest_of_rest(file, seal) != seal.digest) {
    throw ConfigError({.what = what + "damaged: its bytes other than the tokens are not those that were written",
                       .why = fmt::format("the digest of all bytes but the tokens is not {:016x}", seal.digest),
                       .fix = again});
  }
  return seal;
}

void write_seal(File& file, std::uint64_t tokens_offset, std::uint64_t tokens_bytes) {
  TokenFileSeal seal{.file_bytes = file.size(), .tokens_offset = tokens_offset, .tokens_bytes = tokens_bytes};
  seal.digest = digest_of_rest(file, seal);
  file.write(0, block_of(seal));
  file.sync();
}

bool looks_like_token_file(const std::string& path) {
  if (!check_readable("", path).empty()) return false;
  std::array<char, first_words.size()> bytes = {};
  const std::size_t count = File::open(path).read(0, bytes);
  return std::string_view(bytes.data(), count) == first_words;
}

}  // namespace choir
