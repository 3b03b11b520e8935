#include "framework/data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "framework/core/error.h"
#include "framework/core/quantity.h"
#include "framework/data/digest.h"
#include "framework/data/file.h"
#include "framework/data/file_seal.h"
#include "framework/data/text_kind.h"
#include "framework/data/token_file_writer.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

BinaryKind binary_kind_of(const std::string& path) {
  std::string head(text_head_bytes, '\0');
  head.resize(File::open(path).read(0, head));
  BinaryKind kind = binary_kind(head);
  if (const std::size_t at = kind.fix.find("FILE"); at != std::string::npos) kind.fix.replace(at, 4, shell_word(path));
  return kind;
}

std::vector<Problem> check(const PrepareOptions& options) {
  std::vector<Problem> problems = check_output(options.output, token_file_kind);
  const auto add = [&](std::vector<Problem> more) { problems.insert(problems.end(), more.begin(), more.end()); };
  if (options.inputs.empty()) problems.push_back({.what = "no text to prepare", .fix = "name one or more text files"});
  for (const std::string& input : options.inputs) add(check_text(input, options.binary));
  if (!options.given) add(check_tokenizer_training(options.tokenizer));
  return problems;
}

// Messages about files: the first few of each kind, and a count of the others.
class Notes {
 public:
  void add(const std::string& path, const TextNote& note) {
    if (++files_[note.about] <= most) lines_.push_back(path + ": " + note.text);
  }
  std::vector<std::string> lines() const {
    std::vector<std::string> lines = lines_;
    for (const auto& [about, files] : files_)
      if (files > most) lines.push_back(quantity(files - most, "more file") + " with " + about);
    return lines;
  }

 private:
  static constexpr std::int64_t most = 10;
  std::vector<std::string> lines_;
  std::map<std::string, std::int64_t> files_;  // by what the notes are about
};

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

}  // namespace

std::vector<Problem> check_tokenizer_training(const TokenizerConfig& tokenizer) {
  std::vector<Problem> problems;
  if (tokenizer.kind == TokenizerKind::sentencepiece) {
    if (tokenizer.vocabulary < 1 || tokenizer.vocabulary > 1 << 24) {
      problems.push_back({.what = "data.tokenizer.vocabulary = " + std::to_string(tokenizer.vocabulary) +
                                  " is not a possible number of tokens",
                          .fix = "set it, or model.vocabulary, to a number from 512 to about 256000"});
    }
    if (tokenizer.sample_bytes < 1) {
      problems.push_back({.what = "data.tokenizer.sample_bytes = " + std::to_string(tokenizer.sample_bytes) +
                                  " leaves nothing to train on",
                          .fix = "set it to a few million"});
    }
  }
  return problems;
}

std::vector<Problem> check_text(const std::string& path, bool binary) {
  std::vector<Problem> problems = check_readable("text", path);
  if (!problems.empty() || binary) return problems;
  const BinaryKind kind = binary_kind_of(path);
  if (kind.name.empty()) return {};
  return {{.what = "text = " + path + ": this looks like " + kind.name,
           .why = "its bytes would become tokens as they are",
           .fix = (kind.fix.empty() ? "extract its text" : kind.fix + " > " + shell_word(path + ".txt")) +
                  ", and prepare that; choir prepare --binary prepares it as it is"}};
}

void ProblemList::add(Problem problem) {
  if (++count_ <= most) problems_.push_back(std::move(problem));
}

void ProblemList::throw_if_any() {
  if (count_ > most) problems_.push_back({.what = quantity(count_ - most, "more problem") + " of this kind"});
  choir::throw_if_any(problems_);
}

PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress) {
  throw_if_any(check(options));
  PrepareResult result;
  PrepareProgress state;
  Notes notes;
  std::vector<Input> inputs;
  for (const std::string& path : options.inputs) {
    const std::uint64_t bytes = File::open(path).size();
    if (bytes == 0) {
      notes.add(path, {"no text", "is empty and makes no document"});
      continue;
    }
    inputs.push_back({path, bytes});
    state.bytes_total += static_cast<std::int64_t>(bytes);
  }
  if (inputs.empty()) throw ConfigError(Problem{.what = "no text to prepare", .why = "all files are empty"});
  for (const std::string& stale : remove_stale_temporaries(options.output))
    result.notes.push_back("removed " + stale + ", left by a choir prepare that was killed");

  const auto make_tokenizer = [&]() -> Tokenizer {
    if (options.given) return *options.given;
    const TokenizerConfig& config = options.tokenizer;
    if (config.kind == TokenizerKind::bytes) return Tokenizer::bytes();
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
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::string> path_of;  // by size and digest of the text
  state.stage = "tokenizing";
  progress(state);
  for (const Input& input : inputs) {
    const File file = File::open(input.path);
    TextScan scan;
    Digest digest;
    std::uint64_t offset = 0;
    for (bool last = false; !last;) {
      const std::size_t rest = text.size();
      text.resize(rest + piece_bytes);
      const std::size_t count = file.read(offset, std::span(text).subspan(rest));
      text.resize(rest + count);
      const std::string_view piece = std::string_view(text).substr(rest);
      scan.add(piece);
      digest.add(piece);
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

    if (const BinaryKind kind = options.binary ? binary_kind_of(input.path) : BinaryKind{}; !kind.name.empty()) {
      notes.add(input.path, {"data that is not text", "looks like " + kind.name + ", prepared as it is"});
    } else {
      for (const TextNote& note : scan.notes()) notes.add(input.path, note);
    }
    const auto [same, is_new] = path_of.try_emplace({offset, digest.value()}, input.path);
    if (!is_new) {
      const std::string what = same->second == input.path ? "is named twice" : "has the same text as " + same->second;
      notes.add(input.path, {"the text of another file", what + ": it may be both trained on and held out"});
    }
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
  for (std::string& line : notes.lines()) result.notes.push_back(std::move(line));
  return result;
}

}  // namespace choir
