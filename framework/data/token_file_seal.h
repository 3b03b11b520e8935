// The leading block of a token file: 512 bytes of text that say what the file is and whether it is whole.
//
// HDF5 crashes on some damaged files. So a file is passed to it only if all bytes except the tokens, which HDF5 never
// reads, have the digest that was written here last.
#pragma once

#include <cstdint>
#include <string>

#include "framework/data/file.h"

namespace choir {

struct TokenFileSeal {
  static constexpr std::uint64_t block_bytes = 512;
  static constexpr int format = 1;

  std::uint64_t file_bytes = 0;
  std::uint64_t tokens_offset = 0, tokens_bytes = 0;  // where the tokens lie, from the start of the file
  std::uint64_t digest = 0;  // of the fields above and all bytes that are neither block nor tokens

  bool operator==(const TokenFileSeal&) const = default;
};

/// Checks the block against the file and returns it. Throws ConfigError for a file that is not a token file, of another
/// format, truncated or damaged. The tokens are not read.
TokenFileSeal check_seal(const File&);

/// Writes the block: the last step of writing a token file. Returns when the file is on the disk. Throws Error.
void write_seal(File&, std::uint64_t tokens_offset, std::uint64_t tokens_bytes);

/// True if the file begins as token files of any format do. False if it cannot be read.
bool looks_like_token_file(const std::string& path);

}  // namespace choir
