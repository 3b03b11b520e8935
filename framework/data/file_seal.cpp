#include "framework/data/file_seal.h"

#include <fmt/core.h>
#include <unistd.h>

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

std::string first_words(const FileKind& kind) { return fmt::format("choir {} file, format ", kind.name); }
constexpr std::string_view hdf5_signature = "\x89HDF\r\n\x1a\n";

std::string block_of(const FileSeal& seal, const FileKind& kind) {
  std::string text = fmt::format("{0}{1}\nfile bytes {2}\n{3} at {4}\n{3} bytes {5}\ndigest of the rest {6:016x}\n",
                                 first_words(kind), FileSeal::format, seal.file_bytes, kind.elements,
                                 seal.elements_offset, seal.elements_bytes, seal.digest);
  text.resize(FileSeal::block_bytes - 1, ' ');
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

std::uint64_t digest_of_rest(const File& file, const FileSeal& seal) {
  Digest digest;
  const std::uint64_t fields[] = {seal.file_bytes, seal.elements_offset, seal.elements_bytes};
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
  add(FileSeal::block_bytes, seal.elements_offset);
  add(seal.elements_offset + seal.elements_bytes, seal.file_bytes);
  return digest.value();
}

}  // namespace

FileSeal check_seal(const File& file, const FileKind& kind) {
  const std::string what = fmt::format("{} file {}: ", kind.name, file.path()),
                    again = "write it again with choir prepare";
  const std::string begins = first_words(kind);
  const std::uint64_t size = file.size();
  std::array<char, FileSeal::block_bytes> bytes = {};
  const std::string_view block(bytes.data(), file.read(0, bytes));
  if (!block.starts_with(begins)) {
    if (block.starts_with(hdf5_signature)) {
      throw ConfigError({.what = what + fmt::format("this is an HDF5 file, but not {}", kind.one),
                         .fix = "make one with choir prepare"});
    }
    throw ConfigError({.what = what + fmt::format("this is not {} (HDF5 with a leading block)", kind.one),
                       .why = block.empty() ? "it is empty" : "it does not begin with '" + begins + "'",
                       .fix = fmt::format("make one from {} with choir prepare", kind.source)});
  }
  const std::optional<std::uint64_t> format = number_after(block, begins);
  if (format && *format != FileSeal::format) {
    throw ConfigError(
        {.what = what + fmt::format("it is of format {}, and this Choir reads format {}", *format, +FileSeal::format),
         .fix = again});
  }
  if (block.size() < FileSeal::block_bytes) {
    throw ConfigError({.what = what + fmt::format("truncated: it holds {} bytes, and its leading block alone needs {}",
                                                  size, +FileSeal::block_bytes),
                       .fix = again});
  }
  const FileSeal seal{.file_bytes = number_after(block, "file bytes ").value_or(0),
                      .elements_offset = number_after(block, fmt::format("{} at ", kind.elements)).value_or(0),
                      .elements_bytes = number_after(block, fmt::format("{} bytes ", kind.elements)).value_or(0),
                      .digest = number_after(block, "digest of the rest ", 16).value_or(0)};
  if (block != block_of(seal, kind)) throw ConfigError({.what = what + "its leading block is damaged", .fix = again});
  if (size != seal.file_bytes) {
    throw ConfigError(
        {.what = what + fmt::format("{}: it holds {} bytes, needs {}",
                                    size < seal.file_bytes ? "truncated" : "too long", size, seal.file_bytes),
         .why = "it was cut or changed after it was written",
         .fix = again});
  }
  if (seal.elements_offset < FileSeal::block_bytes || seal.elements_offset > size ||
      seal.elements_bytes > size - seal.elements_offset || digest_of_rest(file, seal) != seal.digest) {
    throw ConfigError(
        {.what =
             what + fmt::format("damaged: its bytes other than the {} are not those that were written", kind.elements),
         .why = fmt::format("the digest of all bytes but the {} is not {:016x}", kind.elements, seal.digest),
         .fix = again});
  }
  return seal;
}

void write_seal(File& file, const FileKind& kind, std::uint64_t elements_offset, std::uint64_t elements_bytes) {
  FileSeal seal{.file_bytes = file.size(), .elements_offset = elements_offset, .elements_bytes = elements_bytes};
  seal.digest = digest_of_rest(file, seal);
  file.write(0, block_of(seal, kind));
  file.sync();
}

std::vector<Problem> check_output(const std::string& output, const FileKind& kind) {
  namespace fs = std::filesystem;
  const std::string what = "data.path = " + output + ": ";
  std::error_code ignored;
  if (output.empty())
    return {{.what = "data.path is empty", .why = fmt::format("it names the {} file to write", kind.name)}};
  if (fs::is_directory(output, ignored)) return {{.what = what + "this is a folder", .fix = "name a file in it"}};
  const fs::path parent = fs::path(output).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  if (!fs::is_directory(folder, ignored))
    return {{.what = what + "there is no folder " + folder, .fix = "create it first"}};
  if (::access(folder.c_str(), W_OK) != 0) return {{.what = what + "the folder " + folder + " cannot be written to"}};
  if (fs::exists(output, ignored) && !looks_like(output, kind)) {
    return {{.what = what + fmt::format("this file exists, and it is not {}", kind.one),
             .why = "it would be replaced",
             .fix = "remove it, or name another file"}};
  }
  return {};
}

bool looks_like(const std::string& path, const FileKind& kind) {
  if (!check_readable("", path).empty()) return false;
  std::string bytes = first_words(kind);
  const std::size_t count = File::open(path).read(0, bytes);
  return std::string_view(bytes).substr(0, count) == first_words(kind);
}

}  // namespace choir
