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

  /// Appends a line. If it cannot be written, it is kept, and written with the first later line that can be: lines are
  /// lost only if so many wait that memory must be bounded. Returns what the user should know, or "": that lines wait,
  /// once, and that they have been written after all.
  std::string add(const std::string& line);
  /// Tries once more to write the lines that wait. Returns as add() does.
  std::string retry();

  /// Lines that are not in the file, or never will be.
  std::int64_t missing() const { return static_cast<std::int64_t>(waiting_.size()) + lost_; }
  /// Why, of the last attempt.
  const std::string& reason() const { return reason_; }

 private:
  static constexpr std::size_t max_waiting = 1 << 18;  // about 50 MB

  File file_;
  std::uint64_t end_;  // of the last whole line; what a failed write left behind it is overwritten
  std::deque<std::string> waiting_;
  std::int64_t lost_ = 0;
  std::string reason_;
};

}  // namespace choir
