// A thread that ends a process that hangs, with a report that names the rank that the others wait for.
//
// A process hangs if nothing has happened for longer than the limit of its phase: no collective call and no phase has
// begun or ended. It also hangs if one piece of work on the thread that writes checkpoints takes longer than its limit,
// while steps may go on. On a GPU a call runs until the GPU has ended it, and no thread waits for that: the watchdog
// calls the communicators, which write the ends of calls to the ring. A call that the library reports as failed ends
// the process at once, and so does a stop by a signal that takes too long.
//
// A rank that is stopped, dead or cut off says nothing: the others notice it by its heartbeat (heartbeat.h), by which
// they also agree which rank prints the report. Without heartbeats that is rank 0 or, if it says nothing, every other.
// Until join() there are none: then one rank of each host says which others of it are stopped, as the system tells.
#pragma once

#include <mpi.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "framework/comm/call_ring.h"
#include "framework/comm/communicator.h"
#include "framework/comm/heartbeat.h"
#include "framework/comm/phase.h"
#include "framework/core/stream.h"

namespace choir {

/// In seconds; 0: no limit.
struct WatchdogLimits {
  double start = 1800;    ///< of the phases start and load
  double progress = 600;  ///< of the phases step, evaluate and end, and of waiting in a call in any later than load
  double storage = 1800;  ///< of the phases record and save, and of one piece of work of the storage thread
  double grace = 100;     ///< of a stop by a signal
  double silence = 10;    ///< of another rank: train.heartbeat
};

class Watchdog {
 public:
  /// Starts the thread. `logs_folder` has the rings of all ranks, rank-*.calls, once they have been put there; reports
  /// are added to its file hang.txt. `rank` is the launcher's number of this process, until join(). `signalled` returns
  /// the seconds since a signal asked the run to stop, and 0 if none did; `stopped` returns lines about ranks of this
  /// host that are stopped, if this rank is the one to say so, and may be slow; any thread may call them.
  Watchdog(const WatchdogLimits& limits, std::string logs_folder, int rank = 0, std::function<double()> signalled = {},
           std::function<std::string()> stopped = {});
  /// Stops at once. If the process is about to be ended by the watchdog, waits for that.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  CallRing& ring() { return ring_; }

  /// Collective, after MPI_Init. Starts the heartbeat and writes to the ring whose it is. Returns a message for the
  /// user, or "": what is not watched.
  std::string join(MPI_Comm world);
  /// Begins a phase; also restarts its limit.
  void begin(Phase phase, std::int64_t step = -1);
  /// Watches these too (Mesh::communicators(), and the thread that writes checkpoints) from now on, until the next
  /// call. Null: none.
  void watch(std::vector<Communicator*> communicators, const Stream* storage);

 private:
  struct Limit {
    double seconds;
    const char* key;
  };
  struct Unchanged {  // how long a value has been the same
    double value = -1, since = 0;
    double seconds(double new_value, double now) {
      if (new_value != value) since = now;
      value = new_value;
      return now - since;
    }
  };

  void watch_all();
  Limit limit() const;
  std::string fault(double now);
  std::string problem();
  void fill(Beat&) const;
  std::string doing() const;
  void end(HeartbeatRules::Verdict, const std::string& words);
  void report_and_exit(const std::string& words);
  void abort_communicators();
  std::string report(const std::string& words) const;
  void say(const std::string& text) const;

  const WatchdogLimits limits_;
  const std::string logs_folder_;
  const std::function<double()> signalled_;
  const std::function<std::string()> stopped_;
  int rank_;
  CallRing ring_;
  std::atomic<Phase> phase_ = Phase::start;
  std::atomic<std::int64_t> step_ = -1;
  std::atomic<std::uint64_t> phases_ = 0;  // begun
  Unchanged activity_, storage_work_;
  std::mutex watched_mutex_;
  std::vector<Communicator*> communicators_;
  const Stream* storage_ = nullptr;
  std::atomic<bool> ending_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::unique_ptr<Heartbeat> heartbeat_;
  std::atomic<Heartbeat*> joined_ = nullptr;  // heartbeat_, for the thread
  std::thread thread_;
};

}  // namespace choir
