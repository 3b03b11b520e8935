// choir replay RUN_OR_FOLDER [key=value ...]: computes a rejected step once more and names what went bad first.
#include <fmt/format.h>

#include <cmath>

#include "framework/checkpoint/publish.h"
#include "framework/core/quantity.h"
#include "framework/train/bad_step.h"
#include "framework/train/dataset.h"
#include "framework/train/replay.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

struct Arguments {
  std::string folder;
  std::vector<std::string> words;
};

/// The run's newest bad step, or what the user names.
std::string folder_of(const std::string& path) {
  if (is_checkpoint(path) || !list_steps(path).empty()) return path;
  if (const auto newest = newest_bad_step(path)) return *newest;
  throw ConfigError(
      Problem{.what = path + " has no folder bad-step-...",
              .why = "`choir train` makes one for a step whose update it leaves out",
              .fix = "name a run folder with such a step, or a checkpoint, whose next step is then computed"});
}

int replay(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  read_config("", arguments.words);  // mistakes in the words are reported before a checkpoint is read
  const CheckpointReader reader(find_checkpoint({"RUN_OR_FOLDER", folder_of(arguments.folder)}, process));
  std::vector<std::string> words = default_words("parallel");  // the checkpoint was written in any layout
  words.push_back("parallel.micro_batch=1");                   // the least memory
  words.insert(words.end(), arguments.words.begin(), arguments.words.end());
  const Config config = config_of(reader, words);
  throw_if_any(validate(config, process.ranks()));
  const std::unique_ptr<Dataset> data = open_dataset(config);
  throw_if_any(data->check_weights(reader));
  throw_if_any(data->check_model());
  data->split(&reader);

  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  Trainer trainer(config, *device, mesh);
  load_all(trainer, reader);
  const RunPosition position = position_of(reader);
  trainer.set_spike_window(position.spike_window);
  const std::int64_t step = reader.step() + 1;
  const auto sample_of = [&](std::int64_t place) { return position.left_out.sample(position.samples, place); };
  const Replayed replayed =
      choir::replay(trainer, step, training_batch(*data, position.samples, position.left_out), sample_of);
  if (process.rank() != 0) return 0;

  const auto number = [](double value) { return std::isnan(value) ? "nan" : fmt::format("{}", value); };  // not -nan
  std::string text = fmt::format("{}: step {} on {} ({}): the loss is {}, the gradient norm {}", reader.path(), step,
                                 quantity(process.ranks(), "rank"),
                                 describe_layout(config.parallel, mesh.shape, trainer.context_kind()),
                                 number(replayed.result.loss), number(replayed.result.gradient_norm));
  const auto bad = bad_step_of(reader);
  if (bad)
    text += fmt::format("; in the run they were {} and {}, with samples {}", number(bad->loss),
                        number(bad->gradient_norm), bad->samples.text());
  if (bad && replayed.result.accepted && !(std::isfinite(bad->loss) && std::isfinite(bad->gradient_norm)))
    text += "; it did not happen again, so a fault of the machine is likely";
  fmt::print("{}\n{}\n", text, replayed.finding);
  return 0;
}

}  // namespace

void add_replay_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("replay", "compute a rejected step of a run once more and name what went bad first");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("RUN_OR_FOLDER", arguments->folder,
                   "a run folder for its newest rejected step, a bad-step-... folder of it, or a checkpoint")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides of the checkpoint's configuration");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return replay(line, *arguments); }; });
}

}  // namespace choir
