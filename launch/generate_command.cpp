// choir generate CHECKPOINT [key=value ...]: text from a checkpoint, on one rank: what follows generate.prompt, or of
// an encoder-decoder the target to this source.
#include <fmt/format.h>

#include "framework/core/quantity.h"
#include "framework/train/generate.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

struct Arguments {
  std::string checkpoint;
  std::vector<std::string> words;
};

int generate_text(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  if (process.ranks() != 1)
    throw ConfigError(Problem{.what = "choir generate on " + quantity(process.ranks(), "rank"),
                              .why = "it runs in one process",
                              .fix = "call it without mpirun"});
  read_config("", arguments.words);  // mistakes in the words are reported before a checkpoint is read
  const CheckpointReader reader(find_checkpoint({"CHECKPOINT", arguments.checkpoint}, process));
  std::vector<std::string> words = default_words("parallel");  // the checkpoint was written in any layout
  words.push_back("train.batch=1");
  words.insert(words.end(), arguments.words.begin(), arguments.words.end());
  const Config config = config_of(reader, words);
  throw_if_any(validate(config, process.ranks()));
  if (config.model.family != ModelFamily::decoder && !config.model.has_source())
    throw ConfigError(Problem{
        .what = fmt::format("choir generate: {} has model.family = {}", reader.path(), name_of(config.model.family)),
        .why = config.model.family == ModelFamily::encoder
                   ? "an encoder finds tokens between others that it sees on both sides; it does not continue a text"
                   : "it tells classes apart",
        .fix = "choir evaluate measures how well it does so"});
  const Tokenizer tokenizer = tokenizer_of(reader);
  const LoadedModel model = load_model(reader, config, process);
  if (config.model.has_source()) {
    const std::vector<std::int32_t> source = source_of(config.generate.prompt, tokenizer, config.model);
    write_now(tokenizer.decode(translate(*model.trainer, tokenizer, config.generate, source)));
  } else {
    write_now(config.generate.prompt);
    generate(*model.trainer, tokenizer, config.generate, write_now);
  }
  write_now("\n");
  return 0;
}

}  // namespace

void add_generate_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("generate", "text from a checkpoint, on one rank (generate.prompt=... and others)");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("CHECKPOINT", arguments->checkpoint,
                   "a checkpoint's folder, or a run folder for its newest whole one")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides, of the section generate above all");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return generate_text(line, *arguments); }; });
}

}  // namespace choir
