#include "tests/simgpu/fat_binary.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace choir::simgpu {
namespace {

// Not documented; derived from the output of nvcc 13 (the wrapper is in fatbinary_section.h).
struct Wrapper {
  std::uint32_t magic;
  std::uint32_t version;
  const unsigned char* data;
  const void* unused;
};
struct Header {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint64_t bytes;  // of all entries behind the header
};
struct Entry {
  std::uint16_t kind;  // 1: PTX, 2: machine code
  std::uint16_t version;
  std::uint32_t header_bytes;
  std::uint64_t bytes;  // of the payload, padded
  std::uint32_t compressed_bytes;
  std::uint32_t unknown;
  std::uint16_t minor, major;
  std::uint32_t target;
};
constexpr std::uint32_t wrapper_magic = 0x466243b1, header_magic = 0xBA55ED50;
constexpr std::uint16_t ptx_kind = 1;

}  // namespace

std::vector<EmbeddedPtx> embedded_ptx(const void* fat_binary) {
  Wrapper wrapper;
  std::memcpy(&wrapper, fat_binary, sizeof wrapper);
  Header header;
  std::memcpy(&header, wrapper.data, sizeof header);
  if (wrapper.magic != wrapper_magic || header.magic != header_magic)
    throw std::runtime_error("the format of a fat binary is unknown; only that of nvcc 13 is supported");
  std::vector<EmbeddedPtx> found;
  const unsigned char* at = wrapper.data + header.header_bytes;
  const unsigned char* end = at + header.bytes;
  while (at < end) {
    Entry entry;
    std::memcpy(&entry, at, sizeof entry);
    const auto* payload = reinterpret_cast<const char*>(at) + entry.header_bytes;
    if (entry.kind == ptx_kind) {
      const std::string_view text(payload, strnlen(payload, entry.bytes));
      if (text.find(".version") == std::string_view::npos)
        throw std::runtime_error("the PTX of a fat binary is compressed: compile with --compress-mode=none");
      found.push_back({.target = static_cast<int>(entry.target), .text = text});
    }
    at += entry.header_bytes + entry.bytes;
  }
  return found;
}

}  // namespace choir::simgpu
