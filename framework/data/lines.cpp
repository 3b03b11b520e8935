#include "framework/data/lines.h"

#include <algorithm>

#include "framework/data/file.h"

namespace choir {

std::string contents_of(const std::string& path) {
  const File file = File::open(path);
  std::string text(file.size(), '\0');
  text.resize(file.read(0, text));
  return text;
}

void for_each_line(std::string_view text, const std::function<void(std::string_view line, std::int64_t number)>& body) {
  for (std::int64_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) body(line, number);
  }
}

}  // namespace choir
