// The run folder: run.json, config.yaml, metrics.jsonl, checkpoints/, logs/rank-N.log, logs/rank-N.calls and
// logs/hang.txt; and the lock that lets only one run write to it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace choir {

struct RunFolder {
  std::string path;

  std::string checkpoints() const { return path + "/checkpoints"; }
  std::string logs() const { return path + "/logs"; }
  std::string log(int rank) const { return logs() + "/rank-" + std::to_string(rank) + ".log"; }
  std::string calls(int rank) const { return logs() + "/rank-" + std::to_string(rank) + ".calls"; }
  std::string metrics() const { return path + "/metrics.jsonl"; }
  std::string config() const { return path + "/config.yaml"; }
  std::string record() const { return path + "/run.json"; }
  std::string lock() const { return path + "/run.lock"; }
  /// The checkpoint with the state before step `step`, which was rejected, lies in it (bad_step.h).
  std::string bad_step(std::int64_t step) const { return path + "/bad-step-" + std::to_string(step); }

  /// Creates the folders; they may exist. Throws Error if they cannot be created.
  void create() const;
};

/// run.json: what is known about a run without its checkpoints. If `published` is above 0 and no checkpoint can be
/// read, the checkpoints are lost or not mounted, and the run must not start again at step 1.
struct RunRecord {
  std::string id;              ///< differs between any two runs
  std::int64_t published = 0;  ///< step of the checkpoint published last; 0: none
};

/// An id that no other run has: time, host and process.
std::string new_run_id();
/// Nothing if the folder has no record. Throws Error if it cannot be read.
std::optional<RunRecord> read_record(const RunFolder&);
/// Published like a checkpoint: written under another name, synced, renamed. Throws Error.
void publish_record(const RunFolder&, const RunRecord&);
/// The step of the checkpoint published last, 0 if none: what the record says, or the newest of `steps`, those that the
/// folder holds, newest first. A process that is killed after it has published a checkpoint leaves a record without it.
std::int64_t last_published(const std::optional<RunRecord>&, const std::vector<std::int64_t>& steps);

/// Writes `text` to a file beside `path`, syncs it and renames it to `path`. Throws Error; `path` is then unchanged.
void publish_text(const std::string& path, const std::string& text);

/// Copies metrics.jsonl to metrics.1.jsonl, or the next number that is free, if it is not empty: cut_metrics() removes
/// lines. Returns the new path, or "". Throws Error.
std::string set_metrics_aside(const RunFolder&);
/// Replaces metrics.jsonl by a file with its lines whose "step" is at most `step`: later steps are trained again.
/// Throws Error.
void cut_metrics(const RunFolder&, std::int64_t step);
/// True if metrics.jsonl has a line with the held-out loss of `step`.
bool has_evaluation(const RunFolder&, std::int64_t step);

/// For how long a start waits for the process that holds the lock of the folder.
struct LockWait {
  double seconds = 0;
  std::function<bool()> stopped;                ///< true: do not wait any longer
  std::function<void(const std::string&)> say;  ///< a message for the user: who holds it
};

/// Returns true when no process holds the lock of the folder, false if `stopped` says so before. Throws ConfigError if
/// another process still holds it after the time. Changes nothing.
bool wait_until_free(const RunFolder&, const LockWait&);

/// Holds the run folder for this process, from construction to destruction, by an open-file-description lock of
/// run.lock (fcntl(2), F_OFD_SETLK): it ends with the process, however that ends, and no other thread can lose it by
/// closing the file. run.lock names host, process and start time of the holder.
///
/// It works on one host for any local file system, and between hosts if the file system supports this: NFS 4, NFS 3
/// with lockd, GPFS, BeeGFS if tuned so, Lustre if mounted with `flock` (with `localflock` on one host only). If the
/// file system has no locks, `note` says so.
class RunLock {
 public:
  /// Creates the folder and run.lock if they do not exist. Throws ConfigError if another process holds the lock, or the
  /// folder cannot be written; then nothing has been changed.
  explicit RunLock(const RunFolder& folder);
  /// Releases the lock. Removes the folders that the constructor made if they are still empty.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  /// A message for the user, or "".
  const std::string& note() const { return note_; }

 private:
  void create_folder();
  [[noreturn]] void refuse(int reason);
  void release();

  RunFolder folder_;
  std::vector<std::filesystem::path> created_;  // outermost first
  int descriptor_ = -1;
  std::string note_;
};

}  // namespace choir
