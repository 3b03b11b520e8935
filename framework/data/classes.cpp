#include "framework/data/classes.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace choir {

std::vector<Problem> check_classes(std::int64_t classes, std::int64_t most, const std::string& data) {
  if (classes <= most) return {};
  return {{.what = fmt::format("model.classes = {} is less than the {} classes of {}", most, classes, data),
           .fix = fmt::format("set model.classes to {}", classes)}};
}

std::vector<Problem> check_classes(std::vector<ClassOfInput> classes, std::int64_t most, const std::string& data) {
  std::vector<Problem> problems = check_classes(std::ssize(classes), most, data);
  if (problems.empty()) return problems;
  std::ranges::stable_sort(classes, {}, &ClassOfInput::items);
  std::vector<std::string> rarest;
  for (const ClassOfInput& of : classes)
    if (rarest.size() < 3) rarest.push_back(fmt::format("{} ({} in all, first {})", of.name, of.items, of.first));
  problems[0].why = fmt::format("the rarest are {}", fmt::join(rarest, ", "));
  problems[0].fix += ", or correct names that are mistakes";
  return problems;
}

}  // namespace choir
