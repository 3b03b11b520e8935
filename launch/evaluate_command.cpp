// choir evaluate CHECKPOINT [key=value ...]: the loss on held-out data, with bits per byte of text or the share of
// images whose class is found.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "framework/core/quantity.h"
#include "framework/train/chrf.h"
#include "framework/train/dataset.h"
#include "framework/train/generate.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

struct Arguments {
  std::string checkpoint;
  std::vector<std::string> words;
  bool json = false, chrf = false;
};

/// chrF of what the model writes for the sources of the held-out pairs, against their targets. One rank.
double chrf_of(Trainer& trainer, const Tokenizer& tokenizer, const HeldOut& held_out) {
  ChrF chrf;
  for (std::int64_t i = 0; i < held_out.samples; ++i) {
    SampleBuffer sample(trainer.config().model);
    held_out.read(i, sample.view());
    const auto is_padding = [](std::int32_t token) { return token < 0; };
    std::erase_if(sample.targets, is_padding);
    const std::vector<std::int32_t> text = translate(trainer, tokenizer, trainer.config().generate, sample.source);
    chrf.add(tokenizer.decode(text), tokenizer.decode(sample.targets));
  }
  return chrf.score();
}

/// Why there is no chrF; empty if it was not asked for.
std::vector<Problem> check_chrf(const Arguments& arguments, const ModelConfig& model, std::int64_t ranks) {
  if (!arguments.chrf) return {};
  std::vector<Problem> problems;
  if (!model.has_source())
    problems.push_back({.what = fmt::format("--chrf with model.family = {}", name_of(model.family)),
                        .why = "it compares the texts that an encoder-decoder writes with the targets of pairs",
                        .fix = "leave --chrf out"});
  if (ranks != 1)
    problems.push_back({.what = fmt::format("choir evaluate --chrf on {}", quantity(ranks, "rank")),
                        .why = "text is generated in one process",
                        .fix = "call it without mpirun"});
  return problems;
}

std::string to_json(const std::string& checkpoint, const LossSum& sum, const ModelConfig& model,
                    std::optional<double> chrf) {
  nlohmann::ordered_json json = {{"checkpoint", checkpoint}, {"loss", sum.mean()}};
  if (model.is_classifier()) {
    json["accuracy"] = sum.accuracy();
    json["samples"] = sum.tokens;
  } else {
    json["bits_per_byte"] = sum.bits_per_byte();
    json["tokens"] = sum.tokens;
    json["bytes"] = sum.bytes;
  }
  if (chrf) json["chrf"] = *chrf;
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
  throw_if_any(check_chrf(arguments, config.model, process.ranks()));
  const std::unique_ptr<Dataset> data = open_dataset(config);
  throw_if_any(data->check_weights(reader));
  throw_if_any(data->check_model());
  data->split(&reader);
  const HeldOut held_out = data->held_out();
  if (held_out.all == 0)
    throw ConfigError(Problem{.what = config.data.path + " has no held-out data",
                              .fix = "set data.held_out above 0, or name another data.path"});

  const LoadedModel model = load_model(reader, config, process);
  const LossSum sum = model.trainer->evaluate(held_out.samples, held_out.read);
  if (process.rank() != 0) return 0;
  std::optional<double> chrf;
  if (arguments.chrf) chrf = chrf_of(*model.trainer, tokenizer_of(reader), held_out);
  const std::string of = config.model.is_classifier()
                             ? quantity(held_out.all, std::string("held-out ") + samples_noun(config.model))
                             : fmt::format("{} ({} of {})", quantity(sum.tokens, "held-out token"), held_out.samples,
                                           quantity(held_out.all, samples_noun(config.model)));
  const std::string result = arguments.json
                                 ? to_json(reader.path(), sum, config.model, chrf)
                                 : fmt::format("{}: {}{}, over {}", reader.path(), describe(sum, config.model),
                                               chrf ? fmt::format(", chrF {:.2f}", *chrf) : "", of);
  fmt::print("{}\n", result);
  return 0;
}

}  // namespace

void add_evaluate_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("evaluate", "loss of a checkpoint on held-out data, with bits per byte or accuracy");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("CHECKPOINT", arguments->checkpoint,
                   "a checkpoint's folder, or a run folder for its newest whole one")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides of the checkpoint's configuration");
  verb->add_flag("--chrf", arguments->chrf,
                 "of an encoder-decoder also chrF of what it writes for the held-out sources, on one rank");
  verb->add_flag("--json", arguments->json, "one line of JSON");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return evaluate(line, *arguments); }; });
}

}  // namespace choir
