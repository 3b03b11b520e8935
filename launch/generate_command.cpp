// choir generate CHECKPOINT [key=value ...]: text from a checkpoint, on one rank.
#include <cstdio>

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
  const CheckpointReader reader(find_checkpoint(arguments.checkpoint));
  std::vector<std::string> words = {"parallel.tensor=1", "parallel.sequence=false", "parallel.micro_batch=0",
                                    "parallel.zero=0", "train.batch=1"};
  words.insert(words.end(), arguments.words.begin(), arguments.words.end());
  const Config config = config_of(reader, words);
  std::vector<Problem> problems = validate(config, process.ranks());
  if (process.ranks() != 1)
    problems.push_back({.what = "choir generate runs on one rank, not on " + std::to_string(process.ranks()),
                        .fix = "call it without mpirun"});
  throw_if_any(problems);
  const Tokenizer tokenizer = tokenizer_of(reader);
  const LoadedModel model = load_model(reader, config, process);
  std::fputs(config.generate.prompt.c_str(), stdout);
  generate(*model.trainer, tokenizer, config.generate, [](const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  });
  std::fputc('\n', stdout);
  return 0;
}

}  // namespace

void add_generate_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("generate", "text from a checkpoint, on one rank (generate.prompt=... and others)");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("CHECKPOINT", arguments->checkpoint, "a checkpoint's folder, or a run folder for its newest")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides, of the section generate above all");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return generate_text(line, *arguments); }; });
}

}  // namespace choir
