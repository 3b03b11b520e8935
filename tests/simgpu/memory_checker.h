// Shadow memory of the simulated GPU: which bytes of an allocation are initialised, and their last writer and readers.
//
// Kernels report every access; the checker finds races inside a block and between blocks, reads of uninitialised
// shared or global memory, and accesses outside every live allocation. __syncthreads orders a block, __syncwarp its
// mask, shuffles order nothing, blocks of one launch are unordered, launches are ordered.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace choir::simgpu {

/// One mistake that was found.
struct Finding {
  /// "data race", "uninitialised read", "out of bounds", "misaligned", "divergent barrier", "stream race",
  /// "use after free", "leak", "null stream", "host read", "collective mismatch", "hang", ...
  std::string kind;
  std::string text;  ///< kernel, block, thread, source line; or the operations and streams
};

/// Bytes [begin, begin + bytes) of an allocation that an operation reads or writes.
struct Access {
  const void* begin = nullptr;
  std::int64_t bytes = 0;
  bool write = false;
};

class MemoryChecker {
 public:
  MemoryChecker();
  ~MemoryChecker();

  /// Global memory of the device: allocated (uninitialised), freed, written by a copy or a library.
  void add_allocation(const void* begin, std::int64_t bytes);
  void remove_allocation(const void* begin);
  void mark_initialised(const void* begin, std::int64_t bytes);
  void mark_uninitialised(const void* begin, std::int64_t bytes);

  /// Empty if [begin, begin + bytes) lies in one live allocation; else what is wrong: "4 bytes after the end of the
  /// 256-byte allocation at 0x...".
  std::string outside(const void* begin, std::int64_t bytes) const;
  /// The first byte of [begin, begin + bytes) that nothing has written, or null.
  const void* first_uninitialised(const void* begin, std::int64_t bytes) const;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace choir::simgpu
