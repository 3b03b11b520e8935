// choir prepare CONFIG text files ... [key=value ...]: text to the token file data.path.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "framework/checkpoint/durable.h"
#include "framework/core/quantity.h"
#include "framework/data/prepare.h"
#include "framework/data/token_file.h"
#include "framework/data/token_file_seal.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

/// A word with '=' is an override unless there is a file of that name.
bool is_override(const std::string& word) {
  return word.find('=') != std::string::npos && !std::filesystem::exists(word);
}

/// The tokenizer that data.tokenizer.model names: of a run, a checkpoint, a token file or a SentencePiece model.
Tokenizer given_tokenizer(const std::string& path) {
  if (std::filesystem::is_directory(path))
    return tokenizer_of(CheckpointReader(find_checkpoint({"data.tokenizer.model", path})));
  throw_if_any(check_readable("data.tokenizer.model", path));
  if (looks_like_token_file(path)) return TokenFile(path).tokenizer();
  const Tokenizer tokenizer = Tokenizer::load("sentencepiece", read_text(path), "data.tokenizer.model = " + path);
  std::printf("text is not normalized even if %s asks for it, so that decoding gives the same bytes\n", path.c_str());
  return tokenizer;
}

int prepare_tokens(ConfigArguments arguments, bool binary) {
  PrepareOptions options;
  options.binary = binary;
  std::erase_if(arguments.words, [&](const std::string& word) {
    if (is_override(word)) return false;
    options.inputs.push_back(word);
    return true;
  });
  const Config config = arguments.read();
  std::vector<Problem> problems = validate(config, 0);
  if (options.inputs.empty())
    problems.push_back({.what = "no text files are named", .fix = "choir prepare CONFIG book1.txt book2.txt ..."});
  if (config.data.path.empty())
    problems.push_back(
        {.what = "data.path is not set", .why = "the tokens are written there", .fix = "data.path=corpus.h5"});
  throw_if_any(problems);
  options.output = config.data.path;
  options.tokenizer = config.data.tokenizer;
  if (const std::string& model = config.data.tokenizer.model; !model.empty()) {
    options.given = given_tokenizer(model);
    throw_if_any(check_fits(*options.given, "data.tokenizer.model = " + model, config.model, config.data.tokenizer));
  }
  if (options.tokenizer.kind == TokenizerKind::sentencepiece && options.tokenizer.vocabulary == 0)
    options.tokenizer.vocabulary = config.model.text_vocabulary();
  if (const auto folder = std::filesystem::path(options.output).parent_path(); !folder.empty())
    std::filesystem::create_directories(folder);

  const bool terminal = isatty(STDERR_FILENO) == 1;
  const auto start = std::chrono::steady_clock::now();
  const PrepareResult result = prepare(options, [&](const PrepareProgress& p) {
    if (terminal)
      std::fprintf(stderr, "\r\033[K%s: %.1f of %.1f MB, %.2f M tokens", p.stage,
                   static_cast<double>(p.bytes_done) / 1e6, static_cast<double>(p.bytes_total) / 1e6,
                   static_cast<double>(p.tokens) / 1e6);
  });
  if (terminal) std::fputs("\r\033[K", stderr);
  for (const std::string& note : result.notes) std::printf("%s\n", note.c_str());
  std::printf("%s: %s, %.2f MB of text, %s of a vocabulary of %lld (%.2f bytes a token), %.1f s\n",
              options.output.c_str(), quantity(result.documents, "document").c_str(),
              static_cast<double>(result.text_bytes) / 1e6, quantity(result.tokens, "token").c_str(),
              static_cast<long long>(result.vocabulary),
              static_cast<double>(result.text_bytes) / static_cast<double>(result.tokens),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return 0;
}

}  // namespace

void add_prepare_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("prepare", "text files to the token file data.path");
  auto arguments = std::make_shared<ConfigArguments>();
  auto binary = std::make_shared<bool>(false);
  arguments->add_to(*verb, "text files, each one document; and key=value overrides");
  verb->add_flag("--binary", *binary,
                 "prepare files that are not text (compressed, UTF-16, NUL bytes) too, byte for byte");
  verb->callback(
      [&line, arguments, binary] { line.run = [arguments, binary] { return prepare_tokens(*arguments, *binary); }; });
}

}  // namespace choir
