// Calls that are enqueued on a GPU and have not ended there.
//
// The call ring shows the call that a rank is in. On a GPU a call begins when it is enqueued and ends when the event
// behind it has completed. No thread waits for that: each later call checks the event, and so does the watchdog.
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

  /// A call that has begun in the ring. `done` is called on any thread, oldest call first, until it returns true.
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
