#include "framework/train/dataset.h"

#include <cstdlib>

namespace choir {

std::unique_ptr<Dataset> open_dataset(const Config& config) {
  switch (config.model.family) {
    case ModelFamily::decoder:
    case ModelFamily::encoder:
      return open_text(config);
    case ModelFamily::classifier:
      return open_labelled_text(config);
    case ModelFamily::vision:
      return open_images(config);
  }
  std::abort();  // all values are above
}

}  // namespace choir
