// The classes of labelled data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/core/error.h"

namespace choir {

/// A problem if there are more classes than model.classes = `most`. `data` is what has them: "data.path = a.h5".
std::vector<Problem> check_classes(std::int64_t classes, std::int64_t most, const std::string& data);

struct ClassOfInput {
  std::string name;
  std::int64_t items = 0;
  std::string first;  ///< where it is met first: "a.tsv:7"
};
/// The same of data that is being prepared: the rarest classes are named, for their names may be mistakes.
std::vector<Problem> check_classes(std::vector<ClassOfInput> classes, std::int64_t most, const std::string& data);

}  // namespace choir
