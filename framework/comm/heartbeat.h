// The heartbeat of a rank: a thread that says at short intervals that its process runs, and hears the other ranks say
// so (heartbeat_rules.h). It needs no file system and no MPI call after the start, so it works while both hang.
//
// Messages are UDP datagrams over IPv4. One that is lost is not sent again: ten are sent in the time after which a rank
// is silent. Ranks of one host use its loopback interface. A rank of another host gets datagrams at all its addresses
// until one has come from it, and then at the address from which that came.
#pragma once

#include <mpi.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "framework/comm/heartbeat_rules.h"

namespace choir {

class Heartbeat {
 public:
  using Verdict = HeartbeatRules::Verdict;
  struct Calls {
    /// What this rank does; must not wait for anything or allocate memory.
    std::function<void(Beat&)> fill;
    /// Called once, when the job must end: with the rules' words if this rank speaks for all. Must return soon.
    std::function<void(Verdict, const std::string& words)> end;
    /// Called at most once, with a message for the user.
    std::function<void(const std::string&)> note;
  };

  /// Collective. Starts the thread, unless problem() says why not.
  Heartbeat(MPI_Comm world, const HeartbeatRules::Limits& limits, Calls calls);
  /// Tells the other ranks that this one ends in good order.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// Why there are no heartbeats, the same on all ranks; "" if there are.
  const std::string& problem() const { return problem_; }
  /// A random number of the job, the same on all ranks.
  std::uint64_t job() const { return job_; }
  int rank() const { return rank_; }
  int ranks() const { return static_cast<int>(ends_.size()); }
  const std::string& host() const { return host_; }

  /// This rank has found why the job must end; calls.end follows, here or on the rank that speaks for all.
  void complain(const std::string& why);

 private:
  /// What each rank tells the others at the start: where its datagrams arrive.
  struct End {
    std::uint64_t network = 0;  // the same on ranks that reach each other through the loopback interface
    std::array<std::uint32_t, 4> addresses = {};  // IPv4, in network byte order; 0: no more
    std::uint16_t port = 0;                       // in network byte order; 0: no socket
    char host[62] = {};
  };

  void beat();
  void read_datagrams(double now);
  void send(const Datagram&);
  void wake();

  Calls calls_;
  std::string problem_, host_;
  int rank_ = 0, socket_ = -1, wake_ = -1;
  std::uint64_t job_ = 0;
  double period_;
  std::vector<End> ends_;                 // by rank
  std::vector<std::uint32_t> addresses_;  // by host: from which a datagram came; 0: none yet
  std::mutex mutex_;                      // of the rules; nobody waits while holding it
  std::unique_ptr<HeartbeatRules> rules_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace choir
