// Pictures in folders, or IDX files, to an image file.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "framework/data/prepare.h"
#include "framework/model/model_config.h"

namespace choir {

struct PrepareImagesOptions {
  std::vector<std::string> inputs;  ///< folders with a folder of pictures for each class; or two IDX files, of images
                                    ///< and of labels
  std::string output;               ///< the image file; an existing one is replaced when the new one is whole
  ImageConfig image;                ///< the size that all have
  std::int64_t classes = 0;         ///< at most
};

struct PrepareImagesResult {
  std::int64_t images = 0;
  std::vector<std::string> class_names;  ///< by label: the names of the folders, sorted; of IDX files the numbers
  std::vector<std::int64_t> images_of_class;
  std::vector<std::string> notes;  ///< what was left out, one line each
};

/// Throws ConfigError for more classes, before images are read; for images that cannot be read or are of another size,
/// all of them at once; and Error if the disk is full or fails, after removing the unfinished output.
PrepareImagesResult prepare_images(const PrepareImagesOptions&, const std::function<void(const PrepareProgress&)>&);

}  // namespace choir
