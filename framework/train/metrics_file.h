// metrics.jsonl: one line per step and per evaluation, on a disk that may be full for a while.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "framework/data/file.h"

namespace choir {

class MetricsFile {
 public:
  /// Appends to `path`, which is created if it does not exist. Throws Error.
  explicit MetricsFile(const std::string& path);

  /// Appends a line. If it cannot be written, it is kept in memory and written with the first later line that can be.
  /// Lines are lost only if more than max_waiting wait. Returns a message for the user, or "": once that lines wait,
  /// and once that they have been written after all.
  std::string add(const std::string& line);
  /// Tries once more to write the lines that wait. Returns as add() does.
  std::string retry();

  /// The number of lines that are not in the file: those that wait and those that are lost.
  std::int64_t missing() const { return static_cast<std::int64_t>(waiting_.size()) + lost_; }
  /// Why the last attempt failed.
  const std::string& reason() const { return reason_; }

 private:
  static constexpr std::size_t max_waiting = 1 << 18;  // about 50 MB

  File file_;
  std::uint64_t end_;  // of the last whole line; what a failed write left after it is overwritten
  std::deque<std::string> waiting_;
  std::int64_t lost_ = 0;
  std::string reason_;
};

}  // namespace choir
