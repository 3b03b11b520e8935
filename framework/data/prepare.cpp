#include "framework/data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "framework/core/error.h"
#include "framework/data/file.h"
#include "framework/data/token_file_seal.h"
#include "framework/data/token_file_writer.h"
#include "framework/data/tokenizer.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

std::vector<Problem> check_output(const PrepareOptions& options) {
  const std::string& output = options.output;
  const std::string what = "data.path = " + output + ": ";
  std::error_code ignored;
  if (output.empty()) return {{.what = "data.path is empty", .why = "it names the token file to write"}};
  if (fs::is_directory(output, ignored)) return {{.what = what + "this is a folder", .fix = "name a file in it"}};
  const fs::path parent = fs::path(output).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  if (!fs::is_directory(folder, ignored))
    return {{.what = what + "there is no folder " + folder, .fix = "make it first"}};
  if (::access(folder.c_str(), W_OK) != 0) return {{.what = what + "the folder " + folder + " cannot be written to"}};
  if (fs::exists(output, ignored) && !looks_like_token_file(output)) {
    return {{.what = what + "this file is there already, and it is not a token file",
             .why = "it would be replaced",
             .fix = "remove it, or name another file"}};
  }
  return {};
}

std::vector<Problem> check(const PrepareOptions& options) {
  std::vector<Problem> problems = check_output(options);
  const auto add = [&](std::vector<Problem> more) { problems.insert(problems.end(), more.begin(), more.end()); };
  if (options.inputs.empty()) problems.push_back({.what = "no text to prepare", .fix = "name one or more text files"});
  for (const std::string& input : options.inputs) add(check_readable("text", input));
  const TokenizerConfig& tokenizer = options.tokenizer;
  if (tokenizer.kind != "bytes" && tokenizer.kind != "sentencepiece") {
    const std::string near = nearest(tokenizer.kind, {"bytes", "sentencepiece"});
    problems.push_back({.what = "data.tokenizer.kind = " + tokenizer.kind + ": there is no such tokenizer",
                        .fix = near.empty() ? "use bytes or sentencepiece" : "did you mean " + near + "?"});
  } else if (tokenizer.kind == "sentencepiece" && !tokenizer.model.empty()) {
    add(check_readable("data.tokenizer.model", tokenizer.model));
  } else if (tokenizer.kind == "sentencepiece") {
    if (tokenizer.vocabulary < 1 || tokenizer.vocabulary > 1 << 24) {
      problems.push_back(
          {.what = "data.tokenizer.vocabulary = " + std::to_string(tokenizer.vocabulary) + " is no number of tokens",
           .fix = "set it, or model.vocabulary, to between 512 and 256000 or so"});
    }
    if (tokenizer.sample_bytes < 1) {
      problems.push_back({.what = "data.tokenizer.sample_bytes = " + std::to_string(tokenizer.sample_bytes) +
                                  " leaves nothing to train on",
                          .fix = "set it to some millions"});
    }
  }
  return problems;
}

struct Input {
  std::string path;
  std::uint64_t bytes;
};

// At most `sample_bytes` of the text, in blocks taken at even distances from the files laid end to end.
std::string read_sample(const std::vector<Input>& inputs, std::uint64_t total, std::uint64_t sample_bytes) {
  constexpr std::uint64_t block_bytes = 1 << 16;
  const std::uint64_t wanted = std::min(total, sample_bytes);
  const std::uint64_t blocks = wanted == total ? 1 : std::max<std::uint64_t>(wanted / block_bytes, 1);
  std::string sample;
  std::uint64_t file_start = 0;
  for (const Input& input : inputs) {
    const File file = File::open(input.path);
    for (std::uint64_t block = 0; block < blocks; ++block) {
      // The part of the block that lies in this file.
      const std::uint64_t start = static_cast<std::uint64_t>(static_cast<double>(total) / static_cast<double>(blocks) *
                                                             static_cast<double>(block));
      const std::uint64_t from = std::max(start, file_start);
      const std::uint64_t to = std::min(start + wanted / blocks, file_start + input.bytes);
      if (from >= to) continue;
      const std::size_t size = sample.size();
      sample.resize(size + (to - from));
      sample.resize(size + file.read(from - file_start, std::span(sample).subspan(size)));
    }
    file_start += input.bytes;
  }
  return sample;
}

std::string read_whole(const std::string& path) {
  const File file = File::open(path);
  std::string bytes(file.size(), '\0');
  bytes.resize(file.read(0, bytes));
  return bytes;
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress) {
  throw_if_any(check(options));
  PrepareResult result;
  PrepareProgress state;
  std::vector<Input> inputs;
  for (const std::string& path : options.inputs) {
    const std::uint64_t bytes = File::open(path).size();
    if (bytes == 0) {
      result.notes.push_back(path + " is empty and makes no document");
      continue;
    }
    inputs.push_back({path, bytes});
    state.bytes_total += static_cast<std::int64_t>(bytes);
  }
  if (inputs.empty()) throw ConfigError(Problem{.what = "no text to prepare", .why = "all files are empty"});

  const auto make_tokenizer = [&]() -> Tokenizer {
    const TokenizerConfig& config = options.tokenizer;
    if (config.kind == "bytes") return Tokenizer::bytes();
    if (!config.model.empty()) {
      result.notes.push_back("text is not normalized as " + config.model +
                             " may ask for, so that it comes back exactly");
      return Tokenizer::load(config.kind, read_whole(config.model), "data.tokenizer.model = " + config.model);
    }
    state.stage = "training the tokenizer";
    progress(state);
    const auto total = static_cast<std::uint64_t>(state.bytes_total);
    return Tokenizer::train(config, read_sample(inputs, total, static_cast<std::uint64_t>(config.sample_bytes)));
  };
  const Tokenizer tokenizer = make_tokenizer();

  constexpr std::size_t piece_bytes = 1 << 20;
  TokenFileWriter writer(options.output, tokenizer);
  WordCache cache;
  std::string text;  // what has been read and not yet been tokenized
  std::vector<std::int32_t> tokens;
  state.stage = "tokenizing";
  progress(state);
  for (const Input& input : inputs) {
    const File file = File::open(input.path);
    std::uint64_t offset = 0;
    for (bool last = false; !last;) {
      const std::size_t rest = text.size();
      text.resize(rest + piece_bytes);
      const std::size_t count = file.read(offset, std::span(text).subspan(rest));
      text.resize(rest + count);
      offset += count;
      last = count < piece_bytes;
      tokens.clear();
      text.erase(0, tokenizer.encode_words(text, last, cache, tokens));
      writer.append(tokens);
      state.bytes_done += static_cast<std::int64_t>(count);
      state.tokens = writer.num_tokens();
      progress(state);
    }
    writer.end_document();
  }
  state.stage = "writing";
  state.tokens = writer.num_tokens();
  progress(state);
  writer.finish();

  result.documents = writer.num_documents();
  result.tokens = writer.num_tokens();
  result.text_bytes = writer.text_bytes();
  result.vocabulary = tokenizer.vocabulary();
  result.tokenizer_digest = tokenizer.digest();
  return result;
}

}  // namespace choir
