// A thread that ends a hung process, and first says which rank the others wait for. It also ends a process that is
// overdue: one that was asked to stop, and takes too long.
//
// A process hangs if a call is running or a step is under way, and no collective call and no step has begun or ended
// for longer than the limit. Between steps (start-up, evaluation of a configuration, a long save) there is no limit. On
// a GPU a call is running until the GPU has ended it, and no thread waits for that: the watchdog calls the
// communicators, which write the ends of calls to the ring. A call on a GPU that the library reports as failed ends the
// process at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "framework/comm/call_ring.h"
#include "framework/comm/communicator.h"

namespace choir {

class Watchdog {
 public:
  /// `ring` and `communicators` (Mesh::communicators()) outlive the watchdog. `logs_folder` holds the rings of all
  /// ranks, rank-*.calls. `overdue` is called by the thread and says why the process must end now; empty: it need not.
  Watchdog(const CallRing& ring, std::string logs_folder, double seconds, std::vector<Communicator*> communicators,
           std::function<std::string()> overdue = {});
  ~Watchdog();  ///< stops at once
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Starts the thread, which does not yet look for hangs: the rings of all ranks are not in the folder yet.
  void start_without_limit();
  /// Starts the thread, if it does not run, and the time limit.
  void start();
  void stop();

  /// Both restart the time limit. A step that makes no calls for a long time may call begin_step() again at any time.
  void begin_step();
  void end_step();

 private:
  void watch();
  bool hangs() const;
  /// The first problem that a communicator reports, or why the process is overdue; empty: neither.
  std::string problem() const;
  [[noreturn]] void report_and_exit(const std::string& why) const;

  const CallRing& ring_;
  const std::string logs_folder_;
  const double seconds_;
  const std::vector<Communicator*> communicators_;
  const std::function<std::string()> overdue_;
  std::atomic<double> last_step_;  // seconds since the epoch at which one last began or ended
  std::atomic<bool> in_step_ = false, limited_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace choir
