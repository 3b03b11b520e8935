#include "framework/comm/pending_calls.h"

#include <utility>

namespace choir {

void PendingCalls::add(std::uint64_t sequence, std::function<bool()> done) {
  const std::lock_guard lock(mutex_);
  pending_.push_back({sequence, std::move(done)});
}

void PendingCalls::note_ends() {
  const std::lock_guard lock(mutex_);
  while (!pending_.empty() && pending_.front().done()) {
    ring_.end(pending_.front().sequence);
    pending_.pop_front();
  }
}

}  // namespace choir
