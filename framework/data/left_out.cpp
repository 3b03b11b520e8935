#include "framework/data/left_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

namespace choir {

void LeftOut::add(std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  std::vector<Range> kept;
  for (const Range& range : ranges_) {
    if (range.end < begin || range.begin > end) {
      kept.push_back(range);
    } else {
      begin = std::min(begin, range.begin);
      end = std::max(end, range.end);
    }
  }
  kept.push_back({begin, end});
  std::sort(kept.begin(), kept.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  ranges_ = std::move(kept);
}

std::int64_t LeftOut::sample(std::int64_t first, std::int64_t index) const {
  for (const Range& range : ranges_) {
    if (range.end <= first) continue;
    if (first + index < range.begin) break;
    index -= std::max<std::int64_t>(0, range.begin - first);
    first = range.end;
  }
  return first + index;
}

std::string LeftOut::text() const {
  std::string text;
  for (const Range& range : ranges_)
    text += fmt::format("{}{}-{}", text.empty() ? "" : " ", range.begin, range.end - 1);
  return text;
}

std::optional<LeftOut> LeftOut::parse(const std::string& text) {
  LeftOut result;
  std::istringstream words(text);
  for (std::int64_t first = 0, last = 0; words >> first;) {
    if (words.get() != '-' || !(words >> last)) return std::nullopt;
    result.add(first, last + 1);
  }
  if (result.text() != text) return std::nullopt;
  return result;
}

}  // namespace choir
