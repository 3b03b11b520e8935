// The leading block of a data file: 512 bytes of text that say what the file is and whether it is whole.
//
// HDF5 crashes on some damaged files. So a file is passed to it only if all bytes except the elements (tokens, pixels),
// which HDF5 never reads, have the digest that was written here last.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "framework/core/error.h"
#include "framework/data/file.h"

namespace choir {

/// What a file holds, as words of its messages.
struct FileKind {
  std::string_view name;      ///< "token": of a token file
  std::string_view one;       ///< "a token file"
  std::string_view elements;  ///< "tokens"
  std::string_view source;    ///< what it is made from: "text"
};
inline constexpr FileKind token_file_kind{"token", "a token file", "tokens", "text"};
inline constexpr FileKind image_file_kind{"image", "an image file", "pixels", "images"};

struct FileSeal {
  static constexpr std::uint64_t block_bytes = 512;
  static constexpr int format = 1;

  std::uint64_t file_bytes = 0;
  std::uint64_t elements_offset = 0, elements_bytes = 0;  // where they lie, from the start of the file
  std::uint64_t digest = 0;  // of the fields above and all bytes that are neither block nor elements

  bool operator==(const FileSeal&) const = default;
};

/// Checks the block against the file and returns it. Throws ConfigError for a file of another kind or format, or one
/// that is truncated or damaged. The elements are not read.
FileSeal check_seal(const File&, const FileKind&);

/// Writes the block: the last step of writing a file. Returns when the file is on the disk. Throws Error.
void write_seal(File&, const FileKind&, std::uint64_t elements_offset, std::uint64_t elements_bytes);

/// Why `output`, which data.path names, cannot be written as a file of this kind: it is a folder, is in none, or
/// another file has the name.
std::vector<Problem> check_output(const std::string& output, const FileKind&);

/// True if the file begins as files of this kind and any format do. False if it cannot be read.
bool looks_like(const std::string& path, const FileKind&);

}  // namespace choir
