#include "framework/data/prepare_images.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "framework/core/error.h"
#include "framework/core/quantity.h"
#include "framework/data/classes.h"
#include "framework/data/digest.h"
#include "framework/data/file.h"
#include "framework/data/file_seal.h"
#include "framework/data/image.h"
#include "framework/data/image_file.h"
#include "framework/data/sampler.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

/// The images that are prepared, before they are read.
struct Source {
  std::int64_t count = 0;
  std::vector<std::int32_t> labels;
  std::vector<std::string> class_names;
  std::vector<std::string> notes;
  ProblemList problems;                              // of labels
  std::function<Image(std::int64_t)> read;           // throws ConfigError
  std::function<std::string(std::int64_t)> name_of;  // for messages
};

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::ranges::sort(paths);
  return paths;
}

/// A folder of pictures for each class; a class may be in several of the folders named.
Source folders(const std::vector<std::string>& inputs, std::int64_t most_classes) {
  std::map<std::string, std::vector<std::string>> pictures;  // by class
  Source source;
  std::int64_t others = 0;
  std::string first_other;
  for (const std::string& input : inputs)
    for (const fs::path& of_class : sorted_entries(input)) {
      if (!fs::is_directory(of_class)) {
        if (others++ == 0) first_other = of_class.string();
        continue;
      }
      for (const fs::path& file : sorted_entries(of_class)) {
        if (has_image_name(file.string()))
          pictures[of_class.filename().string()].push_back(file.string());
        else if (others++ == 0)
          first_other = file.string();
      }
    }
  if (others > 0)
    source.notes.push_back(fmt::format("left out {} that {} not a picture by name: {}{}", quantity(others, "file"),
                                       others == 1 ? "is" : "are", first_other, others > 1 ? ", ..." : ""));
  std::vector<std::string> files;
  std::vector<ClassOfInput> classes;
  for (auto& [name, of_class] : pictures) {
    classes.push_back({name, std::ssize(of_class), of_class.front()});
    for (std::string& file : of_class) {
      files.push_back(std::move(file));
      source.labels.push_back(static_cast<std::int32_t>(source.class_names.size()));
    }
    source.class_names.push_back(name);
  }
  source.problems.add_all(check_classes(std::move(classes), most_classes, "the images"));
  source.count = std::ssize(files);
  source.name_of = [files](std::int64_t i) { return files[static_cast<std::size_t>(i)]; };
  return source;
}

/// The format of LeCun's handwritten digits: two zero bytes, the type (8: bytes), the number of dimensions, their sizes
/// in four bytes each with the highest first, then the elements.
struct Idx {
  std::vector<std::int64_t> extents;
  std::string bytes;  // the elements
};

bool looks_like_idx(const std::string& path) {
  std::string head(4, 'x');
  head.resize(File::open(path).read(0, head));
  return head.size() == 4 && head[0] == 0 && head[1] == 0 && head[2] == 8 && head[3] > 0 && head[3] < 5;
}

Idx read_idx(const std::string& path) {
  const File file = File::open(path);
  Idx idx;
  std::string bytes(file.size(), '\0');
  bytes.resize(file.read(0, bytes));
  const auto byte = [&](std::size_t i) { return static_cast<std::int64_t>(static_cast<unsigned char>(bytes[i])); };
  const auto dimensions = static_cast<std::size_t>(byte(3)), begin = 4 + 4 * dimensions;
  std::int64_t count = 1;
  for (std::size_t d = 0; d < dimensions && begin <= bytes.size(); ++d) {
    std::int64_t extent = 0;
    for (std::size_t i = 0; i < 4; ++i) extent = extent << 8 | byte(4 + 4 * d + i);
    idx.extents.push_back(extent);
    constexpr std::int64_t largest = std::int64_t{1} << 40;
    count = extent > 0 && count > largest / extent ? largest : count * extent;
  }
  if (begin > bytes.size() || count != static_cast<std::int64_t>(bytes.size() - begin))
    throw ConfigError(
        Problem{.what = path + ": this IDX file is not whole",
                .why = fmt::format("its header asks for {} bytes, and it has {}", count,
                                   static_cast<std::int64_t>(bytes.size()) - static_cast<std::int64_t>(begin)),
                .fix = "get it again"});
  idx.bytes = bytes.substr(begin);
  return idx;
}

Source idx_files(const std::vector<std::string>& inputs, std::int64_t most_classes) {
  Idx images, labels;
  std::string path_of_labels;
  for (const std::string& input : inputs) {
    Idx idx = read_idx(input);
    if (idx.extents.size() == 1) path_of_labels = input;
    (idx.extents.size() == 1 ? labels : images) = std::move(idx);
  }
  if (inputs.size() != 2 || images.extents.size() < 3 || labels.extents.empty())
    throw ConfigError(Problem{.what = "IDX files come in pairs: one of images and one of their labels",
                              .fix = "name both, for example train-images-idx3-ubyte train-labels-idx1-ubyte"});
  if (images.extents[0] != labels.extents[0])
    throw ConfigError(Problem{.what = fmt::format("the IDX files have {} and {}", quantity(images.extents[0], "image"),
                                                  quantity(labels.extents[0], "label")),
                              .fix = "name files that belong together"});
  Source source;
  source.count = images.extents[0];
  std::int32_t classes = 0;
  for (const char label : labels.bytes) {
    source.labels.push_back(static_cast<unsigned char>(label));
    classes = std::max(classes, source.labels.back() + 1);
  }
  for (std::int64_t i = 0; i < source.count; ++i)
    if (const std::int32_t label = source.labels[static_cast<std::size_t>(i)]; label >= most_classes)
      source.problems.add(
          {.what = fmt::format("{}: label {} of image {} is out of range", path_of_labels, label, i),
           .why = fmt::format("with model.classes = {} labels are 0 to {}", most_classes, most_classes - 1),
           .fix = fmt::format("correct the file, or set model.classes to {}", classes)});
  for (std::int32_t i = 0; i < classes; ++i) source.class_names.push_back(std::to_string(i));
  const std::int64_t channels = images.extents.size() > 3 ? images.extents[1] : 1;
  const std::int64_t height = images.extents[images.extents.size() - 2], width = images.extents.back();
  source.read = [=, bytes = std::move(images.bytes)](std::int64_t i) {
    const auto begin = bytes.begin() + i * channels * height * width;
    return Image{channels, height, width, {begin, begin + channels * height * width}};
  };
  source.name_of = [](std::int64_t i) { return fmt::format("image {}", i); };
  return source;
}

Source source_of(const PrepareImagesOptions& options) {
  std::vector<Problem> problems = check_output(options.output, image_file_kind);
  std::int64_t num_folders = 0;
  for (const std::string& input : options.inputs) {
    if (fs::is_directory(input)) {
      ++num_folders;
      continue;
    }
    const std::vector<Problem> more = check_readable("images", input);
    problems.insert(problems.end(), more.begin(), more.end());
    if (more.empty() && !looks_like_idx(input))
      problems.push_back({.what = "images = " + input + ": this is neither a folder nor an IDX file",
                          .fix = "name a folder that has a folder of pictures for each class"});
  }
  if (num_folders > 0 && num_folders < std::ssize(options.inputs))
    problems.push_back({.what = "folders and IDX files are named together", .fix = "name only one of the two kinds"});
  throw_if_any(problems);
  if (num_folders == 0) return idx_files(options.inputs, options.classes);
  Source source = folders(options.inputs, options.classes);
  source.read = [channels = options.image.channels, name_of = source.name_of](std::int64_t i) {
    return decode_image(name_of(i), channels);
  };
  if (source.count == 0)
    throw ConfigError(Problem{.what = "no pictures in " + options.inputs.front(),
                              .why = "a folder of pictures (PNG, JPEG, PGM, PPM) is expected for each class",
                              .fix = "name the folder above those of the classes"});
  return source;
}

}  // namespace

PrepareImagesResult prepare_images(const PrepareImagesOptions& options,
                                   const std::function<void(const PrepareProgress&)>& progress) {
  const Source source = source_of(options);
  PrepareImagesResult result{.images = source.count, .class_names = source.class_names, .notes = source.notes};
  const ImageConfig& wanted = options.image;
  const std::int64_t bytes = wanted.channels * wanted.height * wanted.width;
  for (const std::string& stale : remove_stale_temporaries(options.output))
    result.notes.push_back("removed " + stale + ", left by a choir prepare that was killed");

  // In an order drawn at random, always the same one, so that the images held out have all classes.
  constexpr std::uint64_t key = 0x696D61676573ull;  // "images"
  File pixels = File::nameless_beside(options.output);
  std::vector<std::int32_t> labels(static_cast<std::size_t>(source.count));
  ProblemList problems = source.problems;
  PrepareProgress state{.stage = "reading images", .bytes_total = source.count * bytes};
  result.images_of_class.resize(source.class_names.size());
  for (std::int64_t i = 0; i < source.count; ++i) {
    state.bytes_done += bytes;
    if (i % 256 == 0) progress(state);
    const std::int64_t place = permute(i, source.count, key, 0);
    labels[static_cast<std::size_t>(place)] = source.labels[static_cast<std::size_t>(i)];
    ++result.images_of_class[static_cast<std::size_t>(source.labels[static_cast<std::size_t>(i)])];
    try {
      const Image image = source.read(i);
      if (image.height != wanted.height || image.width != wanted.width || image.channels != wanted.channels) {
        problems.add({.what = fmt::format(
                          "{}: this image has {} x {} pixels of {}, not {} x {} of {}", source.name_of(i), image.height,
                          image.width, quantity(image.channels, "value"), wanted.height, wanted.width, wanted.channels),
                      .why = "all images have the size model.image.height x model.image.width",
                      .fix = "change the size of the pictures, or set these keys"});
        continue;
      }
      pixels.write(static_cast<std::uint64_t>(place * bytes),
                   {reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size()});
    } catch (const ConfigError& error) {
      problems.add_all(error.problems());
    }
  }
  problems.throw_if_any();

  Digest digest;
  std::string buffer(1 << 20, '\0');
  for (std::uint64_t done = 0; done < static_cast<std::uint64_t>(source.count * bytes);) {
    const std::size_t count = pixels.read(done, buffer);
    digest.add(std::string_view(buffer).substr(0, count));
    done += count;
  }
  digest.add(std::span<const std::int32_t>(labels));
  write_image_file(options.output,
                   {.height = wanted.height,
                    .width = wanted.width,
                    .channels = wanted.channels,
                    .labels = std::move(labels),
                    .class_names = source.class_names,
                    .digest = digest.text()},
                   pixels);
  return result;
}

}  // namespace choir
