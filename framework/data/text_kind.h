// What the bytes of a text file look like: text in UTF-8, text with something unusual, or not text at all.
//
// Text is prepared byte for byte. So the bytes of a compressed file would be trained on as they are, and a carriage
// return, a byte-order mark and the braces of JSON become tokens. The user should know this.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace choir {

/// A kind of data that is not text in UTF-8 or in an encoding of single bytes.
struct BinaryKind {
  std::string name;  ///< "gzip data"; empty: it is text
  std::string fix;   ///< the command that turns FILE into text; may be empty
};

/// Decides by the head of a file, of which at most the first 64 KiB are needed.
BinaryKind binary_kind(std::string_view head);
inline constexpr std::size_t text_head_bytes = 1 << 16;

struct TextNote {
  std::string about;  ///< what is unusual, the same for every text that has it: "CRLF line ends"
  std::string text;   ///< what this text has of it, and how it is handled
};

/// Reads a text piece by piece, cut anywhere, and reports what is unusual about it.
class TextScan {
 public:
  void add(std::string_view piece);
  /// Of the text so far.
  std::vector<TextNote> notes() const;

 private:
  void add_character_byte(unsigned char byte);

  std::string head_;
  std::int64_t bytes_ = 0, lines_ = 0, crlf_lines_ = 0, nul_bytes_ = 0;
  std::int64_t invalid_bytes_ = 0, first_invalid_ = 0;  // not of a character in UTF-8
  std::int64_t character_bytes_ = 0;                    // of the unfinished character at the end
  int expected_ = 0;                                    // bytes that it still needs
  unsigned char least_ = 0x80, most_ = 0xBF;            // bounds of the next of them
  char last_ = 0;
};

}  // namespace choir
