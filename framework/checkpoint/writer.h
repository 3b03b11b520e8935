// Saving while training continues.
//
//   main thread   save(): copy and digest | train ... poll() | train ... poll()
//   io thread             rank-N.h5, fsync ─────────┘   └─ rank 0: checkpoint.h5, manifest.json, verify, rename, prune
//
// All HDF5 calls are on `io`, all MPI calls on the stream of `world`; polls are agreements of all ranks. A failure on
// one rank, such as a full disk, fails the save on all: the folder being written is removed and the checkpoint before
// it stays.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/agreement.h"
#include "framework/checkpoint/manifest.h"
#include "framework/checkpoint/publish.h"
#include "framework/core/stream.h"

namespace choir {

/// How a save has ended: the same on every rank.
struct SaveOutcome {
  bool saved = false;
  std::int64_t step = 0;
  std::string path;   ///< of the published checkpoint, or where it would have been
  std::string text;   ///< why it was not saved, or what went wrong after it was (old ones that cannot be removed)
  double waited = 0;  ///< seconds this rank waited for it in finish(), or in the save() after it
};

class CheckpointWriter {
 public:
  /// Collective. Creates `folder` ("runs/x/checkpoints") and removes what a killed run left in it; `config` says which
  /// checkpoints stay. `published`, if any, is called on the io thread of rank 0 after each publication. The world, and
  /// the streams of MPI and of HDF5 calls, outlive the writer. On an immediate `io` save() itself writes, and copies
  /// nothing. Throws SharedError if the folder cannot be used.
  CheckpointWriter(std::string folder, const CheckpointConfig& config, Communicator& world, Stream& io,
                   std::function<void(std::int64_t step)> published = {});
  /// Waits for the io thread. A save that was not finished is not published.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Collective. Starts saving what this rank owns; over all ranks every element of every tensor exactly once. Returns
  /// when `pieces` have been copied: they may change. If the save before is still running, it is finished first and its
  /// outcome returned.
  std::optional<SaveOutcome> save(std::int64_t step, const std::vector<Piece>& pieces, const State& state);

  /// Collective, at step boundaries. Advances a running save if all ranks are ready, without waiting for a disk;
  /// returns its outcome when it has one. Sends nothing if no save is running.
  std::optional<SaveOutcome> poll();

  /// Collective. Waits for the running save, if any, and returns its outcome.
  std::optional<SaveOutcome> finish();

  bool saving() const { return phase_ != Phase::idle; }

 private:
  enum class Phase { idle, writing, publishing };

  /// What the io thread works on; the main thread looks at it only when it is `done`.
  struct Job {
    std::vector<Piece> pieces;
    std::vector<std::uint64_t> digests;
    std::string report;  ///< on this rank's file, a manifest
    std::string error, warning;
    std::atomic<bool> done = false;
  };

  std::string path() const;
  std::string temporary() const { return path() + ".tmp"; }
  /// Runs `work` on the io thread unless the job has failed already, and then sets `done`.
  void start(std::function<void(Job&)> work);
  void start_publishing();
  SaveOutcome end();

  std::string folder_;
  std::function<void(std::int64_t step)> published_;
  std::shared_ptr<Retention> retention_;  // of rank 0; the io thread uses it
  Agreement ranks_;
  Stream& io_;
  Phase phase_ = Phase::idle;
  std::int64_t step_ = 0;
  State state_;
  std::shared_ptr<Job> job_;
  std::unique_ptr<float[]> staging_;  ///< [staging_count_], kept for the next save
  std::int64_t staging_count_ = 0;
};

}  // namespace choir
