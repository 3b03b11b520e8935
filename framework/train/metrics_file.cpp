#include "framework/train/metrics_file.h"

#include <fmt/format.h>

#include <filesystem>

#include "framework/checkpoint/reason.h"
#include "framework/core/error.h"

namespace choir {
namespace {

File open_or_create(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error) ? File::edit(path) : File::create(path);
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path) : file_(open_or_create(path)), end_(file_.size()) {}

std::string MetricsFile::add(const std::string& line) {
  waiting_.push_back(line + '\n');
  if (waiting_.size() > max_waiting) {
    waiting_.pop_front();
    ++lost_;
  }
  return retry();
}

std::string MetricsFile::retry() {
  const bool failed_before = !reason_.empty();
  const std::size_t waited = waiting_.size();
  try {
    for (; !waiting_.empty(); waiting_.pop_front()) {
      file_.write(end_, waiting_.front());
      end_ += waiting_.front().size();
    }
  } catch (const Error& failure) {
    reason_ = reason_of(failure);
    std::error_code ignored;
    std::filesystem::resize_file(file_.path(), end_, ignored);  // no part of a line stays
    return failed_before ? "" : fmt::format("{}; its lines wait in memory until there is room", reason_);
  }
  reason_.clear();
  if (!failed_before) return "";
  return fmt::format("{} can be written again, with the {} lines that waited{}", file_.path(), waited,
                     lost_ > 0 ? fmt::format("; {} are lost", lost_) : "");
}

}  // namespace choir
