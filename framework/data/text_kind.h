// What the bytes of a text file look like: text in UTF-8, text with a peculiarity, or not text at all.
//
// Text is prepared byte for byte. So the bytes of a compressed file would be trained on as they are, and a carriage
// return, a byte-order mark and the braces of JSON become tokens: the user should know.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace choir {

/// What is not text in UTF-8 or an encoding of single bytes.
struct BinaryKind {
  std::string name;  ///< "gzip data"; empty: it is text
  std::string fix;   ///< the command that turns FILE into text; may be empty
};

/// Judges by the head of a file, of which more than 64 KiB are not needed.
BinaryKind binary_kind(std::string_view head);
inline constexpr std::size_t text_head_bytes = 1 << 16;

struct TextNote {
  std::string about;  ///< the same for the same peculiarity of another text: "CRLF line ends"
  std::string text;   ///< how it shows in this text, and what becomes of it
};

/// Reads a text piece by piece, cut anywhere, and says what is peculiar about it.
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
