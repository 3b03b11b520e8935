// Damaged configurations give a Config or a ConfigError, and nothing else; a Config that was read prints and reads back
// as itself, and can be validated. CHOIR_FUZZ_SECONDS sets how long (2 by default; a minute in a release).
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "framework/config/config.h"

namespace choir {
namespace {

std::vector<std::string> valid_texts() {
  std::vector<std::string> texts = {
      print(Config{}),
      "&a {model: {layers: &n 3, attention: {heads: *n}}, optimizer: {betas: [0.9, 1e-1]}}",
      "%YAML 1.2\n---\ngenerate:\n  prompt: |\n    two\n    lines\n  tokens: !!int 3\n\"train\": {? steps : 4}\n...\n",
  };
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(CHOIR_SOURCE_DIR "/configs"))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    std::ifstream stream(file, std::ios::binary);
    texts.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  return texts;
}

class Mutator {
 public:
  explicit Mutator(std::vector<std::string> texts) : texts_(std::move(texts)) {}

  std::string next() {
    std::string text = texts_[below(texts_.size())];
    for (std::size_t times = 1 + below(4); times > 0 && !text.empty(); --times) mutate(text);
    return text;
  }
  std::size_t below(std::size_t n) { return random_() % n; }

 private:
  void mutate(std::string& text) {
    static const std::vector<std::string> tokens = {":",
                                                    "- ",
                                                    "{",
                                                    "}",
                                                    "[",
                                                    "]",
                                                    "&a ",
                                                    "*a",
                                                    "!",
                                                    "!!str ",
                                                    "|\n",
                                                    ">\n",
                                                    "\"",
                                                    "'",
                                                    "#",
                                                    "\t",
                                                    "\r",
                                                    "%",
                                                    "---\n",
                                                    "...\n",
                                                    "? ",
                                                    "@",
                                                    "`",
                                                    ",",
                                                    "<<: *a\n",
                                                    "\\",
                                                    "\xff",
                                                    "\xef\xbb\xbf",
                                                    "\xe2\x80\xa8",
                                                    "-1",
                                                    "1e999",
                                                    "~"};
    const std::size_t at = below(text.size());
    switch (below(8)) {
      case 0:
        text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;  // a bit
      case 1:
        text[at] = static_cast<char>(below(256));
        break;  // a byte
      case 2:
        text.resize(at);
        break;  // truncated
      case 3:
        text.erase(at, 1 + below(20));
        break;  // a piece lost
      case 4:
        text.insert(at, tokens[below(tokens.size())]);
        break;  // a piece of syntax
      case 5:
        text.insert(at, text.substr(below(text.size()), 1 + below(40)));
        break;  // a piece repeated
      case 6:
        swap_lines(text);
        break;
      default:
        text.insert(at, std::string(1 + below(600), "[{- "[below(4)]));
        break;  // deep
    }
  }
  void swap_lines(std::string& text) {
    std::vector<std::string> lines(1);
    for (const char c : text) {
      lines.back() += c;
      if (c == '\n') lines.emplace_back();
    }
    std::swap(lines[below(lines.size())], lines[below(lines.size())]);
    text.clear();
    for (const std::string& line : lines) text += line;
  }

  std::vector<std::string> texts_;
  std::mt19937_64 random_{20240229};
};

TEST(FuzzConfig, DamagedTextsGiveAConfigOrAConfigError) {
  const char* asked = std::getenv("CHOIR_FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(asked ? std::atof(asked) : 2.0);
  Mutator mutator(valid_texts());
  std::size_t read = 0, refused = 0;
  while (std::chrono::steady_clock::now() < end) {
    const std::string text = mutator.next();
    // Now and then the damaged text is an override: the same reader by its other door.
    const bool as_override = mutator.below(8) == 0;
    const std::vector<std::string> overrides =
        as_override ? std::vector<std::string>{"generate.prompt=" + text, "optimizer.betas=" + text}
                    : std::vector<std::string>{};
    try {
      const Config config = as_override ? read_config("", overrides) : parse_config(text, "fuzz.yaml");
      ++read;
      validate(config, static_cast<std::int64_t>(mutator.below(9)));
      ASSERT_EQ(parse_config(print(config), ""), config) << "printed:\n" << print(config) << "\nread from:\n" << text;
    } catch (const ConfigError& error) {
      ASSERT_FALSE(error.problems().empty());
      ++refused;
    } catch (const std::exception& error) {
      FAIL() << "not a ConfigError: " << error.what() << "\ntext:\n" << text;
    }
  }
  EXPECT_GT(read, 0u);
  EXPECT_GT(refused, 0u);
  std::printf("%zu read, %zu refused\n", read, refused);
}

}  // namespace
}  // namespace choir
