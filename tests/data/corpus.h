// What the data tests share: a temporary folder, text made from a seed, and the messages of exceptions.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "framework/core/error.h"
#include "framework/data/token_file_writer.h"

namespace choir::tests {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "choir-data-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::size_t num_files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// English-like text: words of a vocabulary of 2000 with decreasing frequency, in lines of about ten.
inline std::string random_text(std::size_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::string> words(2000);
  std::mt19937 letters(7);  // the same words for every seed
  for (std::string& word : words) {
    for (std::size_t i = 0, length = 1 + letters() % 9; i < length; ++i)
      word += static_cast<char>('a' + letters() % 26);
  }
  std::string text;
  while (text.size() < bytes) {
    const double u = static_cast<double>(random()) / 4294967296.0;
    text += words[static_cast<std::size_t>(u * u * u * 2000)];
    text += random() % 10 == 0 ? ".\n" : " ";
  }
  text.resize(bytes);
  return text;
}

inline std::string random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

inline TokenizerConfig tokenizer_config(std::int64_t vocabulary) {
  TokenizerConfig config;
  config.vocabulary = vocabulary;
  return config;
}

/// The message of the exception, of the given type, that `call` throws; "" and a failed test if it throws none.
template <class Exception, class Call>
std::string words_of(Call&& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

/// A token file of bytes: document d is text[d].
inline void write_documents(const std::string& path, const std::vector<std::string>& documents,
                            const Tokenizer& tokenizer = Tokenizer::bytes()) {
  TokenFileWriter writer(path, tokenizer);
  for (const std::string& document : documents) {
    writer.append(tokenizer.encode(document));
    writer.end_document();
  }
  writer.finish();
}

inline void expect_says(const std::string& words, const std::string& part) {
  EXPECT_NE(words.find(part), std::string::npos) << "  expected: " << part << "\n  said: " << words;
}

}  // namespace choir::tests
