#include "framework/data/text_kind.h"

#include <fmt/format.h>

#include <algorithm>

namespace choir {
namespace {

using namespace std::string_view_literals;

struct Signature {
  std::size_t at;
  std::string_view bytes, name, fix;
};

constexpr Signature signatures[] = {
    {0, "\x1F\x8B"sv, "gzip data", "gzip -dc FILE"},
    {0, "\xFD\x37zXZ\x00"sv, "xz data", "xz -dc FILE"},
    {0, "\x28\xB5\x2F\xFD"sv, "zstd data", "zstd -dc FILE"},
    {0, "\x04\x22\x4D\x18"sv, "lz4 data", "lz4 -dc FILE"},
    {0, "BZh"sv, "bzip2 data", "bzip2 -dc FILE"},
    {0, "PK\x03\x04"sv, "a zip archive (docx, odt and epub are, too)", "unzip -p FILE"},
    {0, "7z\xBC\xAF\x27\x1C"sv, "a 7z archive", "7z x -so FILE"},
    {257, "ustar"sv, "a tar archive", "tar -xOf FILE"},
    {0, "%PDF-"sv, "a PDF document", "pdftotext FILE -"},
    {0, "PAR1"sv, "Parquet data", ""},
    {0, "\x89HDF\r\n\x1A\n"sv, "HDF5 data", ""},
    {0, "choir token file"sv, "a token file, prepared already", ""},
    {0,
     "\x7F"
     "ELF"sv,
     "a program", ""},
    {0, "\x89PNG"sv, "an image (PNG)", ""},
    {0, "\xFF\xD8\xFF"sv, "an image (JPEG)", ""},
    // UTF-32 before UTF-16: the mark of UTF-32 begins with that of UTF-16.
    {0, "\xFF\xFE\x00\x00"sv, "text in UTF-32", "iconv -f UTF-32 -t UTF-8 FILE"},
    {0, "\x00\x00\xFE\xFF"sv, "text in UTF-32", "iconv -f UTF-32 -t UTF-8 FILE"},
    {0, "\xFF\xFE"sv, "text in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE"},
    {0, "\xFE\xFF"sv, "text in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE"},
};

enum class Order { little, big };

std::uint32_t unit_at(std::string_view text, std::size_t at, std::size_t bytes, Order order) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    value = value << 8 | static_cast<unsigned char>(text[at + (order == Order::big ? i : bytes - 1 - i)]);
  return value;
}

// Of the control characters, text has tabs, line and page breaks. Numbers in binary data look like the others.
bool is_control(std::uint32_t code) { return code < 0x20 && (code < '\t' || code > '\r'); }

bool is_surrogate(std::uint32_t code) { return code >= 0xD800 && code < 0xE000; }

bool is_utf32(std::string_view head, Order order) {
  if (head.size() < 4) return false;
  for (std::size_t at = 0; at + 4 <= head.size(); at += 4) {
    const std::uint32_t code = unit_at(head, at, 4, order);
    if (is_control(code) || is_surrogate(code) || code >= 0x110000) return false;
  }
  return true;
}

bool is_ascii_with_nul(std::string_view head) {
  return std::all_of(head.begin(), head.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte == 0 || (byte < 0x80 && !is_control(byte));
  });
}

// The ASCII characters of text in UTF-16; 0 if it cannot be that. In ASCII text with some NUL bytes, most pairs of
// bytes are characters beyond ASCII.
std::int64_t ascii_in_utf16(std::string_view head, Order order) {
  std::int64_t ascii = 0, others = 0;
  bool low_follows = false;
  for (std::size_t at = 0; at + 2 <= head.size(); at += 2) {
    const std::uint32_t unit = unit_at(head, at, 2, order);
    const bool is_low = unit >= 0xDC00 && unit < 0xE000;
    if (is_control(unit) || is_low != low_follows) return 0;
    low_follows = is_surrogate(unit) && !is_low;
    ++(unit < 0x80 ? ascii : others);
  }
  return others > ascii && is_ascii_with_nul(head) ? 0 : ascii;
}

// Of text with NUL bytes, which UTF-8 and encodings of single bytes do not have; "" if it is not text.
std::string wide_encoding(std::string_view head) {
  if (is_utf32(head, Order::little)) return "UTF-32LE";
  if (is_utf32(head, Order::big)) return "UTF-32BE";
  const std::int64_t little = ascii_in_utf16(head, Order::little), big = ascii_in_utf16(head, Order::big);
  if (little == 0 && big == 0) return "";
  return little >= big ? "UTF-16LE" : "UTF-16BE";
}

// True if the first line is an object and the second line, as far as it is read, begins one.
bool is_json_lines(std::string_view head) {
  const std::size_t end = head.find('\n');
  if (end == std::string_view::npos) return false;
  std::string_view first = head.substr(0, end), second = head.substr(end + 1);
  while (!first.empty() && (first.back() == '\r' || first.back() == ' ')) first.remove_suffix(1);
  return first.starts_with("{") && first.ends_with("}") && first.find("\":") != std::string_view::npos &&
         (second.empty() || second.starts_with("{"));
}

constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

}  // namespace

BinaryKind binary_kind(std::string_view head) {
  for (const Signature& signature : signatures) {
    if (head.size() >= signature.at && head.substr(signature.at).starts_with(signature.bytes))
      return {std::string(signature.name), std::string(signature.fix)};
  }
  if (head.find('\0') == std::string_view::npos) return {};
  if (const std::string encoding = wide_encoding(head); !encoding.empty())
    return {fmt::format("text in {}", encoding), fmt::format("iconv -f {} -t UTF-8 FILE", encoding)};
  return {"binary data: it has NUL bytes", ""};
}

void TextScan::add(std::string_view piece) {
  head_ += piece.substr(0, text_head_bytes - std::min(text_head_bytes, head_.size()));
  for (const char c : piece) {
    if (c == '\n') {
      ++lines_;
      crlf_lines_ += last_ == '\r';
    } else if (c == '\0') {
      ++nul_bytes_;
    }
    last_ = c;
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || expected_ > 0) add_character_byte(byte);
    ++bytes_;
  }
}

// RFC 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF.
void TextScan::add_character_byte(unsigned char byte) {
  const auto invalid = [&](std::int64_t bytes) {
    if (invalid_bytes_ == 0) first_invalid_ = bytes_ - character_bytes_;
    invalid_bytes_ += bytes;
    character_bytes_ = 0;
    expected_ = 0;
  };
  if (expected_ > 0) {
    const bool continues = byte >= least_ && byte <= most_;
    least_ = 0x80;
    most_ = 0xBF;
    if (continues) {
      character_bytes_ = --expected_ > 0 ? character_bytes_ + 1 : 0;
      return;
    }
    invalid(character_bytes_);
    if (byte < 0x80) return;
  }
  if (byte < 0xC2 || byte > 0xF4) return invalid(1);
  expected_ = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
  character_bytes_ = 1;
  if (byte == 0xE0) least_ = 0xA0;
  if (byte == 0xED) most_ = 0x9F;
  if (byte == 0xF0) least_ = 0x90;
  if (byte == 0xF4) most_ = 0x8F;
}

std::vector<TextNote> TextScan::notes() const {
  std::vector<TextNote> notes;
  if (head_.starts_with(byte_order_mark))
    notes.push_back({"a byte-order mark", "begins with a byte-order mark, kept as three bytes of text"});
  if (is_json_lines(head_)) {
    notes.push_back(
        {"JSON lines", "looks like JSON lines, prepared as it is: one document, with all its keys and braces"});
  }
  if (crlf_lines_ > 0) {
    notes.push_back({"CRLF line ends", fmt::format("{} of {} lines end in CRLF, kept as it is; tr -d '\\r' removes it",
                                                   crlf_lines_, lines_)});
  }
  if (nul_bytes_ > 0) notes.push_back({"NUL bytes", fmt::format("NUL bytes: {}, kept as they are", nul_bytes_)});
  if (const std::int64_t invalid = invalid_bytes_ + character_bytes_; invalid > 0) {
    notes.push_back({"bytes that are not UTF-8",
                     fmt::format("bytes that are not UTF-8: {}, the first at byte {}, kept as they are; if the text is "
                                 "in Latin-1, iconv -f LATIN1 -t UTF-8 converts it",
                                 invalid, invalid_bytes_ > 0 ? first_invalid_ : bytes_ - character_bytes_)});
  }
  return notes;
}

}  // namespace choir
