// The last 256 collective calls of this rank, in memory that outlives it.
//
// Each call is written before it starts and after it ends, into a file mapped into memory: a SIGKILL loses nothing.
// If a job dies or hangs, the rings of all ranks show which call each rank has reached.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "framework/comm/phase.h"

namespace choir {

/// One call of one rank: a record of the ring file. Texts end with a zero; longer ones are cut.
///
/// A call is of all ranks of its communicator, or of pairs of them: then `peers` has those at the other ends, and
/// counts all messages to and from each, with this call's.
struct Call {
  struct Peer {
    std::int32_t rank = -1;  ///< in the world; -1: no more peers
    std::uint32_t sent = 0, received = 0;
    bool operator==(const Peer&) const = default;
  };
  static constexpr std::size_t most_peers = 4;

  std::uint64_t sequence = 0;  ///< of this rank, from 1; 0: an empty slot
  /// Of this communicator, from 1. The same call of all ranks has the same number on each. Calls of pairs count apart.
  std::uint64_t number = 0;
  std::uint64_t bytes = 0;
  double started = 0, ended = 0;                  ///< seconds since the epoch; ended == 0: still running
  std::int32_t first = 0, stride = 1, ranks = 1;  ///< the communicator's world ranks: first, first + stride, ...
  Peer peers[most_peers];
  char verb[15] = {}, axis[14] = {}, label[63] = {};

  bool of_pairs() const { return peers[0].rank >= 0; }
};
static_assert(sizeof(Call) == 192 && std::is_trivially_copyable_v<Call>);

/// Whose calls they are, and what the rank does: the head of the ring file.
struct RankState {
  std::uint64_t job = 0;  ///< the same on all ranks of a job; differs between any two jobs
  std::int64_t step = -1;
  std::int32_t rank = 0, ranks = 0;  ///< ranks: of the job; 0: not known
  Phase phase = Phase::start;
  char host[103] = {};
};
static_assert(sizeof(RankState) == 128 && std::is_trivially_copyable_v<RankState>);

class CallRing {
 public:
  static constexpr int length = 256;

  /// In plain memory.
  CallRing();
  /// In a file from the start, as keep_in() says.
  explicit CallRing(const std::string& path) : CallRing() { keep_in(path); }
  /// Moves the calls to the file `path` (logs/rank-N.calls), which is created anew, and keeps them there from now on.
  /// Throws Error if it cannot be created. No call may be running.
  void keep_in(const std::string& path);
  ~CallRing();
  CallRing(const CallRing&) = delete;
  CallRing& operator=(const CallRing&) = delete;

  /// Says whose calls these are. `host` may be cut.
  void identify(std::uint64_t job, int rank, int ranks, const std::string& host);
  /// Says what the rank does from now on.
  void set(Phase phase, std::int64_t step);

  /// Writes `call`, whose sequence and times are set here. Returns the sequence number to give to end(). Both are safe
  /// from any thread; several calls may be running.
  std::uint64_t begin(Call call);
  void end(std::uint64_t sequence);

  /// Seconds since the epoch at which a call last began or ended; for the watchdog. Safe from any thread.
  double last_activity() const { return last_activity_; }
  /// Seconds between the begin and the end of calls, of all calls that have ended. Safe from any thread.
  double seconds_in_calls() const { return seconds_in_calls_; }
  /// True while a call is running. Safe from any thread.
  bool in_call() const { return running_ > 0; }
  std::vector<Call> calls() const;  ///< oldest first
  /// The oldest call that is running, or else the last one; nothing if there is none, or if another thread is writing
  /// to the ring at the moment: never waits. Safe from any thread.
  std::optional<Call> current() const;

 private:
  RankState* state_ = nullptr;  // the slots are behind it
  Call* slots_ = nullptr;       // [length]; call s is in slot (s - 1) % length
  mutable std::mutex mutex_;    // the watchdog, too, writes the ends of GPU calls
  std::uint64_t next_ = 1;
  std::atomic<double> last_activity_;
  std::atomic<double> seconds_in_calls_ = 0;
  std::atomic<int> running_ = 0;
};

/// The calls in a ring file, oldest first. If the file cannot be read: none, and `problem` says why.
std::vector<Call> read_call_ring(const std::string& path, std::string& problem);
std::vector<Call> read_call_ring(const std::string& path, std::string& problem, RankState& state);

/// "all_reduce #238 of tensor (blocks.2.attention)"
std::string name_of(const Call&);

/// "rank 3 is at all_gather #118 of tensor (blocks.7.attention.out), the others at #119", from the rings
/// rank-*.calls of a run's logs folder: a line for each rank that others wait for and that does not wait itself, then
/// each rank's state and last `count` calls. "is past" instead of "is at": that call has ended. Calls of pairs are
/// compared by the numbers of messages between the two ranks. Only rings of `job` count; without it, of that of rank 0:
/// others are of an earlier run with more ranks. "" if `job` has no ring.
std::string describe_call_rings(const std::string& logs_folder, int count = 3, std::optional<std::uint64_t> job = {});

}  // namespace choir
