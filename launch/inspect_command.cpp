// choir inspect RUN [--text ... [--source ...]|--images ...|--held-out N]: what every head of a checkpoint reads, as a
// page and as HDF5.
#include <fmt/format.h>

#include <filesystem>

#include "framework/checkpoint/agreement.h"
#include "framework/core/quantity.h"
#include "framework/train/inspect_files.h"
#include "framework/train/snapshot.h"
#include "launch/checkpoint_path.h"
#include "launch/inspect_samples.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string run, output;
  InspectInput input;
  std::vector<std::string> words;
};

/// inspect/ of the run that the checkpoint belongs to; beside a checkpoint that belongs to none.
std::string default_output(const std::string& checkpoint) {
  const fs::path folder = fs::path(checkpoint + "/").parent_path(), above = folder.parent_path();
  return above.filename() == "checkpoints" ? (above.parent_path() / "inspect").string() : folder.string() + "-inspect";
}

/// The configuration of the checkpoint for one step without dropout whose gradients are used and whose update is not.
Config inspect_config(const CheckpointReader& reader, const Arguments& arguments) {
  std::vector<std::string> words = default_words("parallel");  // the checkpoint was written in any layout
  for (const std::string& word : default_words("optimizer")) words.push_back(word);
  for (const char* word : {"parallel.micro_batch=1", "optimizer.kind=sgd", "optimizer.warmup=0", "train.spike.sigma=0",
                           "train.recompute=none"})
    words.push_back(word);
  words.insert(words.end(), arguments.words.begin(), arguments.words.end());
  for (const char* word : {"model.dropout=0", "model.attention.dropout=0"}) words.emplace_back(word);
  words.push_back(fmt::format("train.evaluate_sequences={}", std::max<std::int64_t>(1, arguments.input.held_out)));
  return config_of(reader, words);
}

/// Data ranks have equally many samples, in equal micro-batches.
std::int64_t batch_for(std::int64_t samples, const ParallelConfig& parallel, std::int64_t ranks) {
  const std::int64_t data = std::max<std::int64_t>(1, ranks / parallel.ranks_of_a_copy());
  const std::int64_t step = data * std::max<std::int64_t>(1, parallel.micro_batch);
  return (samples + step - 1) / step * step;
}

void publish_text(const std::string& path, const std::string& text) {
  TemporaryFile temporary(path);
  temporary.file().write(0, text);
  temporary.file().sync();
  temporary.publish();
}

int inspect_heads(CommandLine& line, const Arguments& arguments) {
  MpiProcess& process = line.start_mpi();
  read_config("", arguments.words);  // mistakes in the words are reported before a checkpoint is read
  const CheckpointReader reader(find_checkpoint({"RUN", arguments.run}, process));
  Config config = inspect_config(reader, arguments);
  const InspectSamples looked_at = inspect_samples(arguments.input, config, reader);
  config.train.batch = batch_for(std::ssize(looked_at.samples), config.parallel, process.ranks());
  throw_if_any(validate(config, process.ranks()));

  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  Trainer trainer(config, *device, mesh);
  load_weights(trainer, reader);
  const Inspection inspection = inspect(trainer, looked_at.samples);

  const std::string output = arguments.output.empty() ? default_output(reader.path()) : arguments.output;
  const std::string page = output + "/inspect.html", file = output + "/inspect.h5";
  const InspectionReport report{.model = config.model,
                                .samples = looked_at.samples,
                                .inspection = inspection,
                                .title = reader.path(),
                                .labels = looked_at.labels,
                                .tokens = looked_at.tokens,
                                .source_tokens = looked_at.source_tokens,
                                .second_source_tokens = looked_at.second_source_tokens};
  Agreement(*mesh.host)
      .on_rank_0(
          [&] {
            fs::create_directories(output);
            publish_text(file, inspection_hdf5(report));
            publish_text(page, inspection_page(report));
          },
          "inspect");
  if (process.rank() != 0) return 0;
  for (const std::string& note : looked_at.notes) fmt::print(stderr, "choir: {}\n", note);
  const std::string cells =
      inspection.tile > 1 ? fmt::format("; a cell of a map is {0} x {0} positions", inspection.tile) : "";
  fmt::print("{}: {} of {}, {}{}\n{}\n{}\n", reader.path(), quantity(inspection.layers, "layer"),
             quantity(inspection.heads, "head"), quantity(std::ssize(looked_at.samples), samples_noun(config.model)),
             cells, file, page);
  return 0;
}

}  // namespace

void add_inspect_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand(
      "inspect", "what every head of a checkpoint reads: a page for the browser, and HDF5; the last line is the page");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("RUN", arguments->run, "a checkpoint's folder, or a run folder for its newest whole one")
      ->required();
  verb->add_option("WORDS", arguments->words, "key=value overrides of the checkpoint's configuration");
  verb->add_option("--text", arguments->input.texts,
                   "a text to look at; several times for several; for a classifier 'class<TAB>text' gives the class")
      ->allow_extra_args(false);
  verb->add_option("--source", arguments->input.sources,
                   "for an encoder-decoder: the source of a text, or both of two with a tab between them; as often as "
                   "--text")
      ->allow_extra_args(false);
  verb->add_option(
          "--images", arguments->input.images,
          "a picture, or a folder of pictures, to look at; several times for several; the name of its folder is "
          "its class")
      ->allow_extra_args(false);
  verb->add_option("--held-out", arguments->input.held_out,
                   "so many of the run's held-out samples; 1 if nothing else is given")
      ->check(CLI::PositiveNumber);
  verb->add_option("--output", arguments->output,
                   "folder for inspect.html and inspect.h5; default: inspect in the run folder");
  verb->callback([&line, arguments] { line.run = [&line, arguments] { return inspect_heads(line, *arguments); }; });
}

}  // namespace choir
