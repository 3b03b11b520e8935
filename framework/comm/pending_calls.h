// Calls that are enqueued on a GPU and have not ended there.
//
// The call ring says where a rank is. On a GPU a call begins when it is enqueued and ends when the event behind it has
// completed. Nobody waits for that: each later call looks, and so does the watchdog's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>

#include "framework/comm/call_ring.h"

namespace choir {

class PendingCalls {
 public:
  /// `ring` outlives this.
  explicit PendingCalls(CallRing& ring) : ring_(ring) {}

  /// A call that has begun in the ring. `done` is asked on any thread, oldest call first, until it is true.
  void add(std::uint64_t sequence, std::function<bool()> done);

  /// Writes the ends of the calls that are done. From any thread. Throws what `done` throws.
  void note_ends();

 private:
  struct Pending {
    std::uint64_t sequence;
    std::function<bool()> done;
  };

  CallRing& ring_;
  std::mutex mutex_;
  std::deque<Pending> pending_;  // oldest first
};

}  // namespace choir
