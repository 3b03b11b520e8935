#include "framework/data/image_file.h"

#include <fmt/core.h>

#include <algorithm>

#include "framework/core/quantity.h"
#include "framework/data/classes.h"
#include "framework/data/file.h"
#include "framework/data/file_seal.h"
#include "framework/data/hdf5_file.h"

namespace choir {
namespace {

ConfigError inconsistent(const std::string& path, const std::string& why) {
  return ConfigError(Problem{.what = "image file " + path + ": its parts do not fit together",
                             .why = why,
                             .fix = "write it again with choir prepare"});
}

}  // namespace

struct ImageFile::Source {
  File file;
  FileStamp stamp;  // when it was opened
};

ImageFile::ImageFile(const std::string& path) : path_(path) {
  std::vector<Problem> problems = check_readable("data.path", path);
  for (Problem& problem : problems)
    if (problem.fix.empty()) problem.fix = "choir prepare CONFIG folder-of-images writes it";
  throw_if_any(problems);
  File file = File::open(path);
  const FileStamp stamp = file.stamp();
  const FileSeal seal = check_seal(file, image_file_kind);
  try {
    const Hdf5Silence silence;
    const Hdf5Handle contents = open_hdf5(file);
    height_ = read_integer_attribute(contents, "height");
    width_ = read_integer_attribute(contents, "width");
    channels_ = read_integer_attribute(contents, "channels");
    digest_ = read_string_attribute(contents, "pixels_digest");
    labels_ = read_dataset<std::int32_t>(contents, "labels", H5T_NATIVE_INT32, seal.file_bytes);
    class_names_ = lines_of(read_dataset<char>(contents, "class_names", H5T_NATIVE_UINT8, seal.file_bytes));
    const Hdf5Extent pixels = hdf5_extent(open_dataset(contents, "pixels"), seal.file_bytes);
    pixels_offset_ = pixels.offset;
    const auto bytes = static_cast<std::uint64_t>(image_bytes());
    if (height_ < 1 || width_ < 1 || channels_ < 1 || pixels.element_bytes != 1 || pixels.count % bytes != 0 ||
        pixels.count / bytes != labels_.size())
      throw inconsistent(path, fmt::format("{} bytes of pixels are not {} of {} x {} x {}", pixels.count,
                                           quantity(num_images(), "image"), channels_, height_, width_));
  } catch (const Hdf5Failure& failure) {
    throw inconsistent(path, std::string("HDF5: ") + failure.what());
  }
  const auto outside =
      std::ranges::find_if(labels_, [&](std::int32_t label) { return label < 0 || label >= std::ssize(class_names_); });
  if (outside != labels_.end())
    throw inconsistent(path, fmt::format("an image is of class {}, and there are {}", *outside, class_names_.size()));
  source_ = std::shared_ptr<Source>(new Source{.file = std::move(file), .stamp = stamp});
}

void ImageFile::read(std::int64_t image, std::span<std::uint8_t> pixels) const {
  const std::span<char> bytes(reinterpret_cast<char*>(pixels.data()), pixels.size());
  const std::size_t count =
      source_->file.read(pixels_offset_ + static_cast<std::uint64_t>(image * image_bytes()), bytes);
  if (count == bytes.size() && source_->file.stamp() == source_->stamp) return;
  throw Error({.what = "image file " + path_ + " was written to while it was in use",
               .why = "its size or its time of change is another than when it was opened",
               .fix = "put the old file back and go on with --resume; to replace a file that is in use, write the new "
                      "one beside it and rename it, as choir prepare does"});
}

void write_image_file(const std::string& path, const ImageFileContents& contents, const File& pixels) {
  const std::string names = text_of_lines(contents.class_names);
  const std::uint64_t pixel_bytes =
      contents.labels.size() * static_cast<std::uint64_t>(contents.channels * contents.height * contents.width);
  constexpr std::uint64_t headers = 1 << 16;
  TemporaryFile temporary(path);
  File& file = temporary.file();
  std::uint64_t offset = 0;
  try {
    const Hdf5Silence silence;
    Hdf5Handle hdf5 = create_hdf5(file.path(), FileSeal::block_bytes,
                                  pixel_bytes + contents.labels.size() * 4 + names.size() + headers);
    write_attribute(hdf5, "format_version", FileSeal::format);
    write_attribute(hdf5, "height", contents.height);
    write_attribute(hdf5, "width", contents.width);
    write_attribute(hdf5, "channels", contents.channels);
    write_attribute(hdf5, "pixels_digest", contents.digest);
    write_dataset(hdf5, "class_names", H5T_STD_U8LE, H5T_NATIVE_UINT8, names.data(), names.size());
    write_dataset(hdf5, "labels", H5T_STD_I32LE, H5T_NATIVE_INT32, contents.labels.data(), contents.labels.size());
    offset = hdf5_extent(create_dataset(hdf5, "pixels", H5T_STD_U8LE, pixel_bytes), UINT64_MAX).offset;
    hdf5.close();
  } catch (const Hdf5Failure& failure) {
    throw Error(
        {.what = "cannot write " + file.path(), .why = failure.what(), .fix = "free space there, or write elsewhere"});
  }
  std::vector<char> buffer(1 << 20);
  for (std::uint64_t done = 0; done < pixel_bytes;) {
    const std::size_t count = pixels.read(done, buffer);
    file.write(offset + done, std::span(buffer).first(count));
    done += count;
  }
  write_seal(file, image_file_kind, offset, pixel_bytes);
  temporary.publish();
}

std::vector<Problem> check_fits(const ImageFile& file, const ModelConfig& model) {
  std::vector<Problem> problems;
  const auto check = [&](const char* key, std::int64_t wanted, std::int64_t has) {
    if (has != wanted)
      problems.push_back(
          {.what = fmt::format("{} = {}, but the images of data.path = {} have {}", key, wanted, file.path(), has),
           .fix = fmt::format("set {} to {}, or choir prepare images of the other size", key, has)});
  };
  check("model.image.height", model.image.height, file.height());
  check("model.image.width", model.image.width, file.width());
  check("model.image.channels", model.image.channels, file.channels());
  for (const Problem& problem :
       check_classes(std::ssize(file.class_names()), model.classes, "data.path = " + file.path()))
    problems.push_back(problem);
  return problems;
}

}  // namespace choir
