// choir evaluate CHECKPOINT [key=value ...]: loss and bits per byte on the held-out text.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "framework/core/quantity.h"
#include "framework/data/sampler.h"
#include "framework/train/samples.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

struct Arguments {
  std::string checkpoint;
  std::vector<std::string> words;
  bool json = false;
};

std::string to_json(const std::string& checkpoint, const LossSum& sum) {
  const nlohmann::ordered_json json = {{"checkpoint", checkpoint},
                                       {"loss", sum.mean()},
                                       {"bits_per_byte", sum.bits_per_byte()},
                                       {"tokens", sum.tokens},
                                       {"bytes", sum.bytes}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);  // a path may not be UTF-8
}

int evaluate(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  read_config("", arguments.words);  // mistakes in the words are reported before a checkpoint is read
  const CheckpointReader reader(find_checkpoint({"CHECKPOINT", arguments.checkpoint}, process));
  std::vector<std::string> words = default_words("parallel");  // the checkpoint was written in any layout
  words.push_back("train.evaluate_sequences=0");
  words.push_back("train.batch=" + std::to_string(8 * process.ranks()));
  words.insert(words.end(), arguments.words.begin(), arguments.words.end());
  const Config config = config_of(reader, words);
  throw_if_any(validate(config, process.ranks()));
  const TokenFile file(config.data.path);
  throw_if_any(check_tokenizer(file, tokenizer_of(reader).digest(), reader.path()));
  const Sampler sampler(file, sampler_options(config, file, &reader));
  const HeldOut text = held_out(config, sampler);
  if (text.all == 0)
    throw ConfigError(Problem{.what = config.data.path + " has no held-out text",
                              .fix = "set data.held_out above 0, or name another data.path"});

  const LoadedModel model = load_model(reader, config, process);
  const LossSum sum = model.trainer->evaluate(text.samples, text.read);
  if (process.rank() != 0) return 0;
  const std::string result =
      arguments.json ? to_json(reader.path(), sum)
                     : fmt::format("{}: {:.4f} nats a token, {:.4f} bits per byte, over {} ({} of {})", reader.path(),
                                   sum.mean(), sum.bits_per_byte(), quantity(sum.tokens, "held-out token"),
                                   text.samples, quantity(text.all, "sequence"));
  fmt::print("{}\n", result);
  return 0;
}

}  // namespace

void add_evaluate_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("evaluate", "loss and bits per byte of a checkpoint on held-out text");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("CHECKPOINT", arguments->checkpoint,
                   "a checkpoint's folder, or a run folder for its newest whole one")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides of the checkpoint's configuration");
  verb->add_flag("--json", arguments->json, "one line of JSON");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return evaluate(line, *arguments); }; });
}

}  // namespace choir
