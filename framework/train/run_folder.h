// The run folder: config.yaml, metrics.jsonl, checkpoints/, logs/rank-N.log and logs/rank-N.calls.
#pragma once

#include <cstdint>
#include <string>

namespace choir {

struct RunFolder {
  std::string path;

  std::string checkpoints() const { return path + "/checkpoints"; }
  std::string logs() const { return path + "/logs"; }
  std::string log(int rank) const { return logs() + "/rank-" + std::to_string(rank) + ".log"; }
  std::string calls(int rank) const { return logs() + "/rank-" + std::to_string(rank) + ".calls"; }
  std::string metrics() const { return path + "/metrics.jsonl"; }
  std::string config() const { return path + "/config.yaml"; }

  /// Creates the folders; they may exist. Throws ConfigError where the path cannot be written.
  void create() const;
};

/// Keeps the lines of metrics.jsonl whose "step" is at most `step`: what a resumed run has not yet done goes.
void truncate_metrics(const std::string& path, std::int64_t step);

}  // namespace choir
