// Messages between the ranks of a communicator about files: flags and texts. Collective; returns when it is done.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "framework/comm/communicator.h"

namespace choir {

class Agreement {
 public:
  /// Messages are in host memory.
  explicit Agreement(Communicator& world) : world_(world) {}

  int rank() const { return world_.rank(); }
  int size() const { return world_.size(); }

  /// The largest `value` of all ranks.
  std::int32_t largest(std::int32_t value, const char* label);
  /// The sum of `value` over all ranks.
  double sum(double value, const char* label);
  /// `text` of rank `root`.
  std::string broadcast(const std::string& text, int root, const char* label);
  /// The first text, by rank, that is not empty; "" if all are empty.
  std::string first(const std::string& text, const char* label);
  /// All ranks' texts, in rank order, on rank 0; nothing on the others.
  std::vector<std::string> gather(const std::string& text, const char* label);
  void barrier(const char* label);
  /// Calls `work` on rank 0. If it throws there, every rank throws: ConfigError for a ConfigError, SharedError for
  /// anything else.
  void on_rank_0(const std::function<void()>& work, const char* label);

 private:
  Tensor bytes(std::int64_t count);

  Communicator& world_;
  Allocator memory_{host_memory()};
};

}  // namespace choir
