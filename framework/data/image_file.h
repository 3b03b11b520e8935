// The image file: pictures of one size and their classes, in HDF5.
//
//   byte 0           512 bytes of text, HDF5's user block: format, size, where the pixels lie, digest of all else
//                    (file_seal.h)
//   /pixels          [images * channels * height * width] uint8: image after image, plane after plane, row after row
//   /labels          [images] int32: the class of each image
//   /class_names     [bytes] uint8: the names of the classes, a line each
//   attributes of /  format_version, height, width, channels, pixels_digest
//
// `choir prepare` writes the images in an order drawn at random, so that any stretch of them has all classes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/core/error.h"
#include "framework/model/model_config.h"

namespace choir {

/// An image file opened for reading; immutable, any number of threads may read. Memory: labels and names.
class ImageFile {
 public:
  /// Opens and checks everything but the pixels. Makes HDF5 calls, which one thread must make. Throws ConfigError for a
  /// file that is missing, not an image file, torn, damaged or of another format.
  explicit ImageFile(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t num_images() const { return static_cast<std::int64_t>(labels_.size()); }
  std::int64_t height() const { return height_; }
  std::int64_t width() const { return width_; }
  std::int64_t channels() const { return channels_; }
  std::int64_t image_bytes() const { return channels_ * height_ * width_; }
  const std::vector<std::string>& class_names() const { return class_names_; }
  const std::string& digest() const { return digest_; }

  std::int32_t label(std::int64_t image) const { return labels_[static_cast<std::size_t>(image)]; }
  /// The pixels of one image, [channels, height, width]. Throws Error if the file was written to since it was opened.
  void read(std::int64_t image, std::span<std::uint8_t> pixels) const;

 private:
  struct Source;  // the open file
  std::string path_;
  std::int64_t height_ = 0, width_ = 0, channels_ = 0;
  std::vector<std::int32_t> labels_;
  std::vector<std::string> class_names_;
  std::string digest_;
  std::uint64_t pixels_offset_ = 0;
  std::shared_ptr<Source> source_;  // shared by copies
};

/// What is written. `pixels` and `labels` of `images` images.
struct ImageFileContents {
  std::int64_t height, width, channels;
  std::vector<std::int32_t> labels;
  std::vector<std::string> class_names;
  std::string digest;  ///< of the pixels and labels
};

/// Writes the file, whose pixels are the bytes of `pixels` from its start, and publishes it when it is whole. Throws
/// Error if the disk is full or fails.
void write_image_file(const std::string& path, const ImageFileContents&, const class File& pixels);

/// Why a model cannot be trained on a file: images of another size, or more classes.
std::vector<Problem> check_fits(const ImageFile&, const ModelConfig&);

}  // namespace choir
