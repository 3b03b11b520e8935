#include "framework/train/dataset.h"

#include <cstdlib>

namespace choir {

ReadSample training_batch(const Dataset& data, std::int64_t first, const LeftOut& left_out) {
  return [read = data.training(0), first, left_out](std::int64_t index, const Sample& sample) {
    return read(left_out.sample(first, index), sample);
  };
}

std::unique_ptr<Dataset> open_dataset(const Config& config) {
  switch (config.model.family) {
    case ModelFamily::decoder:
    case ModelFamily::encoder:
      return open_text(config);
    case ModelFamily::encoder_decoder:
      return open_pairs(config);
    case ModelFamily::classifier:
      return open_labelled_text(config);
    case ModelFamily::vision:
      return open_images(config);
  }
  std::abort();  // all values are above
}

}  // namespace choir
