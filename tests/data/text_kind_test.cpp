// Binary files are recognised by their first bytes, and peculiarities of text are counted, wherever it is cut.
#include "framework/data/text_kind.h"

#include <gtest/gtest.h>

#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

using namespace std::string_literals;

// Of ASCII and the characters of the Basic Multilingual Plane.
std::string wide(const std::u16string& text, int bytes, bool big) {
  std::string result;
  for (const char16_t c : text) {
    std::string unit(static_cast<std::size_t>(bytes), '\0');
    unit[0] = static_cast<char>(c & 0xFF);
    unit[1] = static_cast<char>(c >> 8);
    if (big) unit.assign(unit.rbegin(), unit.rend());
    result += unit;
  }
  return result;
}

TEST(BinaryKind, CompressedDataAndDocumentsAreNamed) {
  const std::pair<std::string, std::string> cases[] = {
      {"\x1F\x8B\x08\x00"s, "gzip data"},
      {"\xFD\x37zXZ\x00\x00"s, "xz data"},
      {"\x28\xB5\x2F\xFD\x04"s, "zstd data"},
      {"PK\x03\x04\x14"s, "a zip archive (docx, odt and epub are, too)"},
      {"BZh91AY&SY"s, "bzip2 data"},
      {"%PDF-1.7\n"s, "a PDF document"},
      {"choir token file, format 1\n"s, "a token file, prepared already"},
      {"name"s + std::string(253, '\0') + "ustar", "a tar archive"},
      {"a\0b\0\0\0"s, "binary data: it has NUL bytes"},
      {"abc\0def\0\nhello"s, "binary data: it has NUL bytes"},
      {"a line\0another line\n"s, "binary data: it has NUL bytes"},
      {"\1\0\0\0\2\0\0\0"s, "binary data: it has NUL bytes"}};
  for (const auto& [head, name] : cases) EXPECT_EQ(binary_kind(head).name, name);
  EXPECT_EQ(binary_kind("\x1F\x8B\x08").fix, "gzip -dc FILE");
}

TEST(BinaryKind, WideEncodingsAreNamedWithAndWithoutAMark) {
  for (const std::u16string& text : {u"In the beginning\n"s, u"\u4E00\u4E2D\u6587\n\u4E00 a"s}) {
    EXPECT_EQ(binary_kind(wide(text, 2, false)).name, "text in UTF-16LE");
    EXPECT_EQ(binary_kind(wide(text, 2, true)).name, "text in UTF-16BE");
    EXPECT_EQ(binary_kind(wide(text, 4, false)).name, "text in UTF-32LE");
    EXPECT_EQ(binary_kind(wide(text, 4, true)).name, "text in UTF-32BE");
    for (const bool big : {false, true}) {
      EXPECT_EQ(binary_kind(wide(u"\uFEFF" + text, 2, big)).name, "text in UTF-16");
      EXPECT_EQ(binary_kind(wide(u"\uFEFF" + text, 4, big)).name, "text in UTF-32");
    }
  }
  EXPECT_EQ(binary_kind(wide(u"a text", 2, true)).fix, "iconv -f UTF-16BE -t UTF-8 FILE");
}

TEST(BinaryKind, TextIsText) {
  for (const std::string& text :
       {""s, "a"s, "caf\xE9"s, "caf\xC3\xA9"s, "\xEF\xBB\xBFtext"s, "{\"a\": 1}\n"s, random_text(70000, 1)})
    EXPECT_EQ(binary_kind(text).name, "") << text.substr(0, 20);
}

std::vector<std::string> texts_of(const std::vector<TextNote>& notes) {
  std::vector<std::string> texts;
  for (const TextNote& note : notes) texts.push_back(note.text);
  return texts;
}

std::vector<std::string> notes_of(const std::string& text, std::size_t piece = 1 << 20) {
  TextScan scan;
  for (std::size_t at = 0; at < text.size(); at += piece) scan.add(std::string_view(text).substr(at, piece));
  return texts_of(scan.notes());
}

TEST(TextScan, PlainTextHasNoNotes) {
  for (const std::string& text :
       {""s, random_text(1000, 1), "caf\xC3\xA9 \xE4\xB8\xAD \xF0\x9F\x8E\xB6 \xED\x9F\xBF \xF4\x8F\xBF\xBF"s,
        "{\"a\": 1} in a line of text\n"s, "{}\n"s, "a\rb"s})
    EXPECT_EQ(notes_of(text), std::vector<std::string>()) << text;
}

TEST(TextScan, EachPeculiarityIsCounted) {
  const auto first = [](const std::string& text) { return notes_of(text).at(0); };
  expect_says(first("a\r\nb\nc\r\n"), "2 of 3 lines end in CRLF, kept as it is");
  expect_says(first("\xEF\xBB\xBFtext"), "begins with a byte-order mark, kept as three bytes");
  expect_says(first("{\"a\": 1}\n{\"a\": 2}\n"), "looks like JSON lines");
  expect_says(first("{\"a\": 1}\r\n"), "looks like JSON lines");
  expect_says(first("ab\0c\0"s), "NUL bytes: 2, kept");
}

TEST(TextScan, BytesThatAreNotUtf8AreFound) {
  const std::tuple<std::string, int, int> cases[] = {
      {"caf\xE9", 1, 3},          {"\xE9t\xE9", 2, 0},    {"a\x80", 1, 1},
      {"\xC0\x80", 2, 0},         {"\xE0\x80\x80", 3, 0}, {"a \xED\xA0\x80", 3, 2},
      {"\xF4\x90\x80\x80", 4, 0}, {"\xF0\x9F\x8E", 3, 0}, {"\xF0\x9F\x8Ex", 3, 0},
      {"\xE4\xB8\xC3\xA9", 2, 0}, {"\xC3\xA9\xFF", 1, 2}};
  for (const auto& [text, count, at] : cases) {
    const std::string expected =
        "bytes that are not UTF-8: " + std::to_string(count) + ", the first at byte " + std::to_string(at) + ",";
    expect_says(notes_of(text).at(0), expected);
  }
}

TEST(TextScan, ItDoesNotMatterWhereTheTextIsCut) {
  std::string text = "\xEF\xBB\xBF{\"a\": 1}\r\n{\"b\": \"\xE4\xB8\xAD\"}\r\n\0\xF0\x9F\x8E\xB6 \xE9 \xE4\xB8"s;
  for (unsigned seed = 0; seed < 10; ++seed) {
    const std::vector<std::string> whole = notes_of(text);
    for (const std::size_t piece : {1, 2, 3, 7}) EXPECT_EQ(notes_of(text, piece), whole);
    text += random_bytes(50, seed);
  }
}

}  // namespace
}  // namespace choir::tests
