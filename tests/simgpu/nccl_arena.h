// The shared memory in which the ranks of one communicator of the double of NCCL meet.
//
// Every pair of ranks has a channel for messages, every rank a slot for collectives; each is a mailbox for one piece at
// a time. Nothing here blocks: a call that finds a mailbox full or empty tries again later.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/simgpu/nccl_order.h"

namespace choir::simgpu {

/// What the ranks compare of a call.
struct CallSignature {
  std::int64_t count = 0;
  std::int32_t type = 0, reduction = 0, root = 0;
  char call[20] = {};   ///< "ncclAllReduce"
  char label[64] = {};  ///< Choir's, truncated
};

class Arena {
 public:
  static constexpr std::int64_t slot_bytes = 256 << 10;  ///< the largest piece

  enum Presence : std::int32_t { here, destroyed, aborted };

  /// Counters only grow: a slot contains a piece while deposited is greater than the least `consumed` of all members.
  struct alignas(64) Member {
    std::atomic<std::int64_t> deposited, consumed;
    CallSignature signature;  ///< of the collective whose first piece was deposited last
    std::atomic<Presence> presence;
    std::atomic<std::int64_t> splits, splits_read;
    std::int32_t color, key;  ///< of the last split
    char bus[32];             ///< of the GPU, once `has_bus`; in communicators that were not split from another one
    std::atomic<bool> has_bus;
    LaunchLog collectives;  ///< launched by this rank
  };
  struct alignas(64) Channel {
    std::atomic<std::int64_t> posted, taken;
    CallSignature signature;    ///< of the message whose first piece was posted last
    LaunchLog sends, receives;  ///< launched by its two ranks
  };

  /// Opens or creates the memory called `name` and adds this rank. Throws std::runtime_error if that fails.
  Arena(const std::string& name, int ranks);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  int ranks() const { return ranks_; }
  bool complete() const;  ///< all ranks have joined
  Member& member(int rank) const;
  Channel& channel(int from, int to) const;
  std::byte* slot(int rank) const;
  std::byte* channel_slot(int from, int to) const;

 private:
  struct Header {
    std::atomic<std::int32_t> ranks, attached;
  };
  Header& header() const { return *reinterpret_cast<Header*>(memory_); }

  std::string name_;
  int ranks_;
  std::int64_t bytes_;
  std::byte* memory_ = nullptr;  // Header, Member [ranks], Channel [from][to], slots [ranks], channel slots [from][to]
};

}  // namespace choir::simgpu
