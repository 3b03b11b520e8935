#include "launch/inspect_samples.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "framework/core/quantity.h"
#include "framework/data/image.h"
#include "framework/data/masking.h"
#include "framework/train/dataset.h"
#include "framework/train/generate.h"
#include "framework/train/layer_heads.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> class_names(const CheckpointReader& reader) {
  const auto names = reader.state().find("class_names");
  return names == reader.state().end() ? std::vector<std::string>{} : lines_of(names->second);
}

/// The number of the class called `name`; -1 if there is none.
std::int32_t class_called(const std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : static_cast<std::int32_t>(found - names.begin());
}

void set_class(InspectedSample& sample, std::int32_t number) {
  sample.target_is_known = number >= 0;
  sample.buffer.targets[0] = std::max(0, number);
}

class TextReader {
 public:
  TextReader(const Config& config, const CheckpointReader& reader)
      : config_(config), model_(config.model), tokenizer_(tokenizer_of(reader)), classes_(class_names(reader)) {}

  /// A text that is given; `number` among them. Adds a note if it is cut.
  InspectedSample read(std::string text, std::int64_t number, std::vector<std::string>& notes) const {
    InspectedSample sample{.buffer = SampleBuffer(model_)};
    if (const auto tab = text.find('\t'); model_.family == ModelFamily::classifier && tab != std::string::npos) {
      const std::int32_t known = class_called(classes_, text.substr(0, tab));
      set_class(sample, known);
      if (known >= 0) text.erase(0, tab + 1);
    } else if (model_.is_classifier()) {
      set_class(sample, -1);
    }
    const std::vector<std::int32_t> ids = tokenizer_.encode(text);
    check_length(std::ssize(ids));
    const std::int64_t first = model_.is_classifier() && model_.pool == Pool::class_token ? 1 : 0;
    const std::int64_t used = std::min(std::ssize(ids), model_.context - first);
    if (used < std::ssize(ids))
      notes.push_back(fmt::format("--text has {}: the first {} are looked at, since model.context = {}",
                                  quantity(std::ssize(ids), "token"), used, model_.context));
    std::ranges::fill(sample.buffer.inputs, tokenizer_.end_of_document());
    std::copy_n(ids.begin(), used, sample.buffer.inputs.begin() + first);
    if (model_.is_classifier())
      leave_out_filler(sample.buffer.documents, first + used);
    else if (!sample.buffer.documents.empty())
      sample.buffer.documents = documents_of(sample.buffer.inputs, tokenizer_.end_of_document());
    set_targets(sample, ids, used, number);
    // Tokens that see only those before them do not see what fills the context up.
    const bool separate = !sample.buffer.documents.empty();
    sample.length = model_.family == ModelFamily::decoder ? used
                    : model_.is_classifier()              ? sample.buffer.documents.front().end
                    : separate                            ? std::min(model_.context, used + 1)
                                                          : model_.context;
    return sample;
  }

  /// A source and its target, as a pair of a token file is read. Adds notes of what is cut.
  InspectedSample read_pair(const std::string& source, const std::string& target,
                            std::vector<std::string>& notes) const {
    InspectedSample sample{.buffer = SampleBuffer(model_)};
    const auto read_side = [&](const char* flag, const std::string& text, const char* key,
                               std::span<std::int32_t> side) {
      std::vector<std::int32_t> ids = tokenizer_.encode(text);
      if (ids.empty())
        throw ConfigError(Problem{.what = fmt::format("{} is empty", flag),
                                  .why = "a pair has a text on either side",
                                  .fix = fmt::format("{} TEXT", flag)});
      ids.push_back(tokenizer_.end_of_document());
      const auto used = std::min(ids.size(), side.size());
      if (used < ids.size())
        notes.push_back(fmt::format("{} has {} with its end: the first {} are looked at, since {} = {}", flag,
                                    quantity(std::ssize(ids), "token"), used, key, side.size()));
      std::ranges::fill(side, -1);
      std::copy_n(ids.begin(), used, side.begin());
      return static_cast<std::int64_t>(used);
    };
    SampleBuffer& buffer = sample.buffer;
    const std::vector<std::string> sources = texts_of_source("--source", source, model_);
    const auto read_source = [&](std::size_t n) {
      return read_side("--source", sources[n], "model.source_context",
                       source_text(model_, std::span(buffer.source), static_cast<std::int64_t>(n)));
    };
    sample.source_length = read_source(0);
    if (sources.size() > 1) sample.second_source_length = read_source(1);
    sample.length = read_side("--text", target, "model.context", buffer.targets);
    buffer.inputs[0] = tokenizer_.end_of_document();
    std::copy_n(buffer.targets.begin(), buffer.inputs.size() - 1, buffer.inputs.begin() + 1);
    return sample;
  }

  std::vector<std::string> tokens(const InspectedSample& sample) const {
    std::vector<std::string> texts;
    for (std::int64_t i = 0; i < sample.length; ++i) texts.push_back(text_of(sample, i));
    return texts;
  }
  /// Of text `text` of the source, of which `length` positions are looked at.
  std::vector<std::string> source_tokens(const InspectedSample& sample, std::int64_t text, std::int64_t length) const {
    std::vector<std::string> texts;
    if (length == 0) return texts;
    const auto ids = source_text(model_, std::span(sample.buffer.source), text);
    for (const std::int32_t id : ids.first(static_cast<std::size_t>(length))) texts.push_back(text_of_token(id));
    return texts;
  }
  std::string label(const InspectedSample& sample) const {
    if (!model_.is_classifier() || !sample.target_is_known) return "";
    const auto number = static_cast<std::size_t>(sample.buffer.targets[0]);
    return number < classes_.size() ? classes_[number] : fmt::format("class {}", number);
  }

 private:
  void check_length(std::int64_t tokens) const {
    const std::int64_t prefix =
        model_.family == ModelFamily::decoder ? std::max<std::int64_t>(1, model_.attention.prefix) : 0;
    if (tokens > prefix) return;
    throw ConfigError(Problem{
        .what =
            fmt::format("--text has {}{}", quantity(tokens, "token"),
                        model_.attention.prefix > 0 ? fmt::format(", and model.attention.prefix = {}", prefix) : ""),
        .why = prefix > 0 ? "the importance of heads is that for the loss of a next token" : "there is nothing to read",
        .fix = "give a longer text"});
  }
  void set_targets(InspectedSample& sample, const std::vector<std::int32_t>& ids, std::int64_t used,
                   std::int64_t number) const {
    std::vector<std::int32_t>& targets = sample.buffer.targets;
    switch (model_.family) {
      case ModelFamily::decoder: {
        std::ranges::fill(targets, -1);
        const std::int64_t next = std::min(std::ssize(ids) - 1, used);
        for (std::int64_t i = std::max<std::int64_t>(0, model_.attention.prefix - 1); i < next; ++i)
          targets[static_cast<std::size_t>(i)] = ids[static_cast<std::size_t>(i + 1)];
        return;
      }
      case ModelFamily::encoder:
        std::ranges::fill(targets, -1);
        std::copy_n(ids.begin(), used, targets.begin());
        mask_tokens({.shares = config_.data.masked,
                     .key = random_key(0, "masked held-out tokens"),
                     .mask_token = static_cast<std::int32_t>(model_.text_vocabulary()),
                     .text_vocabulary = tokenizer_.vocabulary()},
                    number, sample.buffer.inputs, targets);
        return;
      case ModelFamily::classifier:
      case ModelFamily::encoder_decoder:  // read_pair() has them
      case ModelFamily::vision:
        return;
    }
  }
  /// What the page shows of a token: its own bytes, or a name in brackets.
  std::string text_of(const InspectedSample& sample, std::int64_t position) const {
    if (position == 0 && model_.is_classifier() && model_.pool == Pool::class_token) return "[class]";
    const std::int32_t id = sample.buffer.inputs[static_cast<std::size_t>(position)];
    if (model_.family == ModelFamily::encoder && id == model_.text_vocabulary()) return "[mask]";
    return position == 0 && model_.has_source() ? "[begin]" : text_of_token(id);
  }
  std::string text_of_token(std::int32_t id) const {
    if (id == tokenizer_.end_of_document()) return "[end]";
    if (id >= tokenizer_.vocabulary()) return fmt::format("[{}]", id);
    return tokenizer_.decode(std::span(&id, 1));
  }

  const Config& config_;
  const ModelConfig& model_;
  Tokenizer tokenizer_;
  std::vector<std::string> classes_;
};

/// The files that `paths` name: themselves, or the pictures of a folder and of the folders in it.
std::vector<std::string> picture_files(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      throw_if_any(check_readable("--images", path));
      files.push_back(path);
      continue;
    }
    const std::size_t before = files.size();
    for (const auto& entry : fs::recursive_directory_iterator(path))
      if (entry.is_regular_file() && has_image_name(entry.path().string())) files.push_back(entry.path().string());
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(before), files.end());
    if (files.size() == before)
      throw ConfigError(Problem{.what = "--images " + path + ": there is no picture in this folder",
                                .why = "names of pictures end in png, jpg, jpeg, pgm, ppm or pnm",
                                .fix = "name another folder, or a file"});
  }
  return files;
}

InspectedSample picture_sample(const std::string& path, const ModelConfig& model,
                               const std::vector<std::string>& classes) {
  const Image image = decode_image(path, model.image.channels);
  if (image.height != model.image.height || image.width != model.image.width)
    throw ConfigError(Problem{.what = fmt::format("--images {}: this image has {} x {} pixels, not {} x {}", path,
                                                  image.height, image.width, model.image.height, model.image.width),
                              .why = "the model reads images of the size model.image.height x model.image.width",
                              .fix = "change the size of the picture"});
  InspectedSample sample{.buffer = SampleBuffer(model), .length = model.context};
  to_patches(model, std::vector<float>(image.pixels.begin(), image.pixels.end()), sample.buffer.patches);
  set_class(sample, class_called(classes, fs::absolute(path).parent_path().filename().string()));
  return sample;
}

std::string times(std::size_t count) { return quantity(static_cast<std::int64_t>(count), "time"); }

void check_input(const InspectInput& input, const Config& config) {
  const bool reads_images = config.model.family == ModelFamily::vision;
  std::vector<Problem> problems;
  const bool reads_pairs = config.model.has_source();
  if (!input.sources.empty() && !reads_pairs)
    problems.push_back({.what = fmt::format("--source, but model.family = {}", name_of(config.model.family)),
                        .why = "only an encoder-decoder reads a source",
                        .fix = "leave it out"});
  if (reads_pairs && input.sources.size() != input.texts.size())
    problems.push_back({.what = fmt::format("--text is given {} and --source {}", times(input.texts.size()),
                                            times(input.sources.size())),
                        .why = "an encoder-decoder reads pairs of a source and a target",
                        .fix = "give each --text its --source, in the same order"});
  if ((input.texts.empty() ? 0 : 1) + (input.images.empty() ? 0 : 1) + (input.held_out > 0 ? 1 : 0) > 1)
    problems.push_back({.what = "more than one of --text, --images and --held-out is given", .fix = "give one"});
  if (!input.texts.empty() && reads_images)
    problems.push_back({.what = "--text, but model.family = vision",
                        .why = "this model reads images",
                        .fix = "--images FILE, or --held-out N for N of the run's own"});
  if (!input.images.empty() && !reads_images)
    problems.push_back({.what = fmt::format("--images, but model.family = {}", name_of(config.model.family)),
                        .why = "this model reads text",
                        .fix = std::string(reads_pairs ? "--source TEXT " : "") +
                               "--text TEXT, or --held-out N for N " + samples_noun(config.model) +
                               "s of the run's own"});
  if (const std::int64_t most = std::max<std::int64_t>(std::ssize(input.texts), input.held_out); most > most_inspected)
    problems.push_back({.what = fmt::format("{} samples are more than {}", most, most_inspected),
                        .why = "the page holds the maps of all of them",
                        .fix = "look at fewer at a time"});
  throw_if_any(problems);
}

/// How a model of images or texts is told what to look at.
const char* given_instead(const Config& config) {
  return config.model.family == ModelFamily::vision ? "--images FILE, or data.path=FILE with held-out images"
         : config.model.has_source()                ? "--source TEXT --text TEXT, or data.path=FILE with held-out pairs"
                                                    : "--text TEXT, or data.path=FILE with held-out text";
}

std::unique_ptr<Dataset> open_held_out(const Config& config, const CheckpointReader& reader) {
  try {
    std::unique_ptr<Dataset> data = open_dataset(config);
    throw_if_any(data->check_weights(reader));
    throw_if_any(data->check_model());
    data->split(&reader);
    return data;
  } catch (const ConfigError& error) {
    std::vector<Problem> problems = error.problems();
    problems.push_back(
        {.what = "there is nothing to look at: the run's held-out data cannot be used", .fix = given_instead(config)});
    throw ConfigError(problems);
  }
}

void add_held_out(std::int64_t wanted, const Config& config, const CheckpointReader& reader, InspectSamples& all) {
  const std::unique_ptr<Dataset> data = open_held_out(config, reader);
  const HeldOut held = data->held_out();
  if (held.all == 0)
    throw ConfigError(Problem{.what = config.data.path + " has no held-out data", .fix = given_instead(config)});
  if (held.samples < wanted)
    all.notes.push_back(fmt::format("--held-out {}: {} has {}", wanted, config.data.path,
                                    quantity(held.all, std::string("held-out ") + samples_noun(config.model))));
  for (std::int64_t i = 0; i < held.samples; ++i) {
    InspectedSample& sample =
        all.samples.emplace_back(InspectedSample{.buffer = SampleBuffer(config.model), .length = config.model.context});
    held.read(i, sample.buffer.view());
    if (config.model.family == ModelFamily::classifier) sample.length = sample.buffer.documents.front().end;
    if (config.model.has_source()) {
      sample.length = std::ranges::count_if(sample.buffer.targets, [](std::int32_t id) { return id >= 0; });
      sample.source_length = source_tokens(config.model, sample.buffer, TokenStream::source);
      if (source_texts(config.model) == 2)
        sample.second_source_length = source_tokens(config.model, sample.buffer, TokenStream::second_source);
    }
    all.labels.push_back(fmt::format("held-out {} {}", samples_noun(config.model), i * held.all / held.samples));
  }
}

/// The first words of a text.
std::string beginning_of(const std::string& text) {
  constexpr std::size_t most = 40;
  if (text.size() <= most) return text;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a character
  return text.substr(0, end) + "...";
}

}  // namespace

InspectSamples inspect_samples(const InspectInput& input, const Config& config, const CheckpointReader& reader) {
  check_input(input, config);
  InspectSamples all;
  if (input.texts.empty() && input.images.empty()) add_held_out(input.held_out, config, reader, all);
  if (config.model.family == ModelFamily::vision) {
    const std::vector<std::string> classes = class_names(reader), files = picture_files(input.images);
    if (std::ssize(files) > most_inspected)
      all.notes.push_back(
          fmt::format("--images names {} pictures: the first {} are looked at", files.size(), most_inspected));
    for (std::size_t i = 0; i < std::min<std::size_t>(files.size(), most_inspected); ++i) {
      all.samples.push_back(picture_sample(files[i], config.model, classes));
      all.labels.push_back(fs::path(files[i]).filename().string());
    }
    for (std::size_t i = 0; i < all.samples.size(); ++i)
      if (const auto number = static_cast<std::size_t>(all.samples[i].buffer.targets[0]);
          all.samples[i].target_is_known && number < classes.size())
        all.labels[i] += ": " + classes[number];
    all.tokens.resize(all.samples.size());
    return all;
  }
  const TextReader texts(config, reader);
  for (std::size_t i = 0; i < input.texts.size(); ++i) {
    all.samples.push_back(config.model.has_source()
                              ? texts.read_pair(input.sources[i], input.texts[i], all.notes)
                              : texts.read(input.texts[i], static_cast<std::int64_t>(i), all.notes));
    all.labels.push_back(beginning_of(input.texts[i]));
  }
  for (std::size_t i = 0; i < all.samples.size(); ++i) {
    all.tokens.push_back(texts.tokens(all.samples[i]));
    all.source_tokens.push_back(texts.source_tokens(all.samples[i], 0, all.samples[i].source_length));
    all.second_source_tokens.push_back(texts.source_tokens(all.samples[i], 1, all.samples[i].second_source_length));
    if (const std::string known = texts.label(all.samples[i]); !known.empty()) all.labels[i] += ": " + known;
  }
  return all;
}

}  // namespace choir
