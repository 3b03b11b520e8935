// Samples of a run that are not read: those of steps that a run has gone back over. The others keep their order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace choir {

class LeftOut {
 public:
  /// Leaves out samples [begin, end), too.
  void add(std::int64_t begin, std::int64_t end);

  /// The sample that is number `index`, from 0, of those from `first` on that are read.
  std::int64_t sample(std::int64_t first, std::int64_t index) const;

  /// "12-15 40-43"; "" if no sample is left out.
  std::string text() const;
  /// Nothing if `text` is not what text() returns.
  static std::optional<LeftOut> parse(const std::string& text);

  bool operator==(const LeftOut&) const = default;

 private:
  struct Range {
    std::int64_t begin, end;
    bool operator==(const Range&) const = default;
  };
  std::vector<Range> ranges_;  // ascending, with samples that are read between them
};

}  // namespace choir
