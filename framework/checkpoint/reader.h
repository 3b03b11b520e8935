// Finding, verifying and reading checkpoints. No HDF5 here: the manifest says at which byte each part begins and the
// elements are read as bytes, so that a damaged file is not passed to a library that could crash on it. Any thread may
// read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/manifest.h"
#include "framework/comm/communicator.h"

namespace choir {

/// A damaged checkpoint stays damaged. An unreadable one may be whole: the disk fails, the file belongs to another
/// user, or a newer program wrote it.
enum class Condition : std::int32_t { whole, damaged, unreadable };

struct CheckpointInfo {
  std::int64_t step = 0;
  std::string path;
  std::string problem;  ///< why it is not whole; "" if no reason is known
  Condition condition = Condition::whole;
};

/// "PATH: problem" for each, on lines of their own.
std::string list_of(const std::vector<CheckpointInfo>& checkpoints);

/// The condition of the checkpoint in folder `path`, by its manifest and the sizes of its files.
CheckpointInfo look_at(const std::string& path);

/// All step-… folders of `folder`, newest first, each as look_at() returns it: elements are not read. Empty if there
/// is no such folder. Throws Error if the folder cannot be listed.
std::vector<CheckpointInfo> list_checkpoints(const std::string& folder);

/// What is wrong with a checkpoint, by reading all of it: one line for each file and tensor. Empty: it is whole.
/// With several readers, reader `index` of `readers` reads its share of the files. `condition` is set if it is given.
std::vector<std::string> verify_checkpoint(const std::string& path, int index = 0, int readers = 1,
                                           Condition* condition = nullptr);

/// The same, collectively: every rank reads its share, and every rank gets the first few problems of all, or "".
std::string verify_together(const std::string& path, Communicator& world, Condition* condition = nullptr);

/// Collective. The newest whole checkpoint of `folder`, verified by all ranks together, or nothing; `rejected` are
/// those that are newer and why. The same result on every rank. Throws SharedError if the folder cannot be listed.
std::optional<CheckpointInfo> find_latest(const std::string& folder, Communicator& world,
                                          std::vector<CheckpointInfo>& rejected);

class CheckpointReader {
 public:
  /// Reads the manifest. Throws ConfigError if it is not that of a whole checkpoint. Elements are not verified.
  explicit CheckpointReader(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t step() const { return manifest_.step; }
  const State& state() const { return manifest_.state; }
  const Manifest& manifest() const { return manifest_; }
  const std::vector<TensorEntry>& tensors() const { return manifest_.tensors; }

  /// Fills every piece with its elements, whatever layout wrote them. Throws ConfigError before anything is read,
  /// naming all tensors that are missing or have another shape; Error if the disk fails.
  void read(const std::vector<Piece>& pieces) const;

 private:
  std::string path_;
  Manifest manifest_;
};

}  // namespace choir
