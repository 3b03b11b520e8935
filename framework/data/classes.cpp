#include "framework/data/classes.h"

#include <fmt/core.h>

namespace choir {

std::vector<Problem> check_classes(std::int64_t classes, std::int64_t most, const std::string& data) {
  if (classes <= most) return {};
  return {{.what = fmt::format("model.classes = {} is less than the {} classes of {}", most, classes, data),
           .fix = fmt::format("set model.classes to {}", classes)}};
}

}  // namespace choir
