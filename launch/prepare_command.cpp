// choir prepare CONFIG text files ... [key=value ...]: text to the token file data.path; for a classifier, each line is
// a class, a tab and a text, for an encoder-decoder a source, a tab and a target. For a vision model, CONFIG folders or
// IDX files ...: pictures to the image file data.path.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "framework/checkpoint/durable.h"
#include "framework/core/quantity.h"
#include "framework/data/file_seal.h"
#include "framework/data/prepare.h"
#include "framework/data/prepare_images.h"
#include "framework/data/prepare_labelled.h"
#include "framework/data/prepare_pairs.h"
#include "framework/data/token_file.h"
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
  if (looks_like(path, token_file_kind)) return TokenFile(path).tokenizer();
  const Tokenizer tokenizer = Tokenizer::load("sentencepiece", read_text(path), "data.tokenizer.model = " + path);
  std::printf("text is not normalized even if %s asks for it, so that decoding gives the same bytes\n", path.c_str());
  return tokenizer;
}

/// A function that shows progress on a terminal's line, and does nothing elsewhere.
std::function<void(const PrepareProgress&)> progress_line() {
  if (isatty(STDERR_FILENO) == 0) return [](const PrepareProgress&) {};
  return [](const PrepareProgress& p) {
    std::fprintf(stderr, "\r\033[K%s: %.1f of %.1f MB", p.stage, static_cast<double>(p.bytes_done) / 1e6,
                 static_cast<double>(p.bytes_total) / 1e6);
    if (p.tokens > 0) std::fprintf(stderr, ", %.2f M tokens", static_cast<double>(p.tokens) / 1e6);
  };
}

void end_progress_line() {
  if (isatty(STDERR_FILENO) == 1) std::fputs("\r\033[K", stderr);
}

void create_folder_of(const std::string& path) {
  if (const auto folder = std::filesystem::path(path).parent_path(); !folder.empty())
    std::filesystem::create_directories(folder);
}

/// "3 classes (left 14, right 13, top 13)"
std::string classes_text(const std::vector<std::string>& names, const std::vector<std::int64_t>& counts) {
  std::string text = quantity(std::ssize(names), "class") + " (";
  for (std::size_t i = 0; i < names.size() && i < 20; ++i)
    text += (i > 0 ? ", " : "") + names[i] + " " + std::to_string(counts[i]);
  return text + (names.size() > 20 ? ", ...)" : ")");
}

int prepare_pictures(const Config& config, const std::vector<std::string>& inputs) {
  create_folder_of(config.data.path);
  const PrepareImagesResult result = prepare_images(
      {.inputs = inputs, .output = config.data.path, .image = config.model.image, .classes = config.model.classes},
      progress_line());
  end_progress_line();
  for (const std::string& note : result.notes) std::printf("%s\n", note.c_str());
  std::printf("%s: %s of %s\n", config.data.path.c_str(), quantity(result.images, "image").c_str(),
              classes_text(result.class_names, result.images_of_class).c_str());
  return 0;
}

int prepare_data(ConfigArguments arguments, bool binary) {
  PrepareOptions options;
  options.binary = binary;
  std::erase_if(arguments.words, [&](const std::string& word) {
    if (is_override(word)) return false;
    options.inputs.push_back(word);
    return true;
  });
  const Config config = arguments.read();
  const bool images = config.model.family == ModelFamily::vision;
  if (binary && config.model.has_source())
    throw ConfigError(Problem{.what = "choir prepare --binary with model.family = encoder_decoder",
                              .why = "pairs are lines of text",
                              .fix = "leave --binary out"});
  std::vector<Problem> problems = validate(config, 0);
  if (options.inputs.empty())
    problems.push_back({.what = images ? "no folders of pictures are named" : "no text files are named",
                        .fix = images ? "choir prepare CONFIG folder, which has a folder of pictures for each class"
                                      : "choir prepare CONFIG book1.txt book2.txt ..."});
  if (config.data.path.empty())
    problems.push_back({.what = "data.path is not set",
                        .why = images ? "the images are written there" : "the tokens are written there",
                        .fix = images ? "data.path=images.h5" : "data.path=corpus.h5"});
  throw_if_any(problems);
  if (images) return prepare_pictures(config, options.inputs);
  options.output = config.data.path;
  options.tokenizer = config.data.tokenizer;
  if (const std::string& model = config.data.tokenizer.model; !model.empty()) {
    options.given = given_tokenizer(model);
    throw_if_any(check_fits(*options.given, "data.tokenizer.model = " + model, config.model, config.data.tokenizer));
  }
  if (options.tokenizer.kind == TokenizerKind::sentencepiece && options.tokenizer.vocabulary == 0)
    options.tokenizer.vocabulary = config.model.text_vocabulary();
  create_folder_of(options.output);
  const bool labelled = config.model.family == ModelFamily::classifier;
  const bool pairs = config.model.has_source();
  std::string of_classes;  // the end of the line about the documents
  const auto prepare_text = [&] {
    if (!pairs && !labelled) return prepare(options, progress_line());
    const PrepareLinesOptions lines{
        .inputs = options.inputs, .output = options.output, .tokenizer = options.tokenizer, .given = options.given};
    if (pairs) return prepare_pairs(lines, source_texts(config.model), progress_line());
    const PrepareLabelledResult result = prepare_labelled(lines, config.model.classes, progress_line());
    of_classes = " of " + classes_text(result.class_names, result.documents_of_class);
    return result.text;
  };
  const auto start = std::chrono::steady_clock::now();
  const PrepareResult result = prepare_text();
  end_progress_line();
  for (const std::string& note : result.notes) std::printf("%s\n", note.c_str());
  std::printf("%s: %s%s, %.2f MB of text, %s of a vocabulary of %lld (%.2f bytes a token), %.1f s\n",
              options.output.c_str(),
              (pairs ? quantity(result.documents / (source_texts(config.model) + 1), samples_noun(config.model))
                     : quantity(result.documents, "document"))
                  .c_str(),
              of_classes.c_str(), static_cast<double>(result.text_bytes) / 1e6,
              quantity(result.tokens, "token").c_str(), static_cast<long long>(result.vocabulary),
              static_cast<double>(result.text_bytes) / static_cast<double>(result.tokens),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return 0;
}

}  // namespace

void add_prepare_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("prepare", "text files to the token file data.path, or pictures to the image file");
  auto arguments = std::make_shared<ConfigArguments>();
  auto binary = std::make_shared<bool>(false);
  arguments->add_to(
      *verb,
      "text files, each one document, for a classifier each line a class, a tab and a text, for an encoder-decoder "
      "each line a source, a tab and a target, or in files *.jsonl {\"source\": ..., \"target\": ...}; with two "
      "sources "
      "(model.attention.sources) the second one between them; or for a vision "
      "model folders with a folder of pictures for each class, "
      "or two IDX files; and key=value overrides");
  verb->add_flag("--binary", *binary,
                 "prepare files that are not text (compressed, UTF-16, NUL bytes) too, byte for byte");
  verb->callback(
      [&line, arguments, binary] { line.run = [arguments, binary] { return prepare_data(*arguments, *binary); }; });
}

}  // namespace choir
