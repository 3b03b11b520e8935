// One caching allocator for every device: a request gets the smallest free block that fits, if at most half of it stays
// unused.
//
// A training step asks for the same sizes in the same order every time, so after the first steps every request is
// answered by a free block: no system call, no page fault, and a peak that can be counted beforehand. A block is
// neither split nor merged, so that their number stays at what the requests of one moment need. On device `count` the
// same code hands out addresses that nothing may read.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace choir {

struct TensorMemory;  // core/tensor.h

/// What memory is for, in the words of the memory plan.
enum class MemoryKind : std::uint8_t { parameters, gradients, optimizer, saved, workspace, temporary };
inline constexpr int num_memory_kinds = 6;
const char* name_of(MemoryKind kind);

/// The source of an allocator's memory.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  /// At least 64-byte aligned; null if none is left.
  virtual void* map(std::int64_t bytes) = 0;
  virtual void unmap(void* address, std::int64_t bytes) noexcept = 0;
};

/// Anonymous memory of the host; large blocks on huge pages if the system has them.
std::unique_ptr<MemorySource> host_memory();
/// Addresses without memory behind them, each handed out once.
std::unique_ptr<MemorySource> counted_memory();

struct MemoryUse {
  std::array<std::int64_t, num_memory_kinds> bytes{};
  std::int64_t total() const;
};

class Allocator {
 public:
  struct Block {
    void* address = nullptr;
    std::int64_t bytes = 0;     ///< asked for, rounded
    std::int64_t capacity = 0;  ///< of the memory behind it
    MemoryKind kind = MemoryKind::temporary;
  };

  explicit Allocator(std::unique_ptr<MemorySource> source) : source_(std::move(source)) {}
  ~Allocator();
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  /// If the source has none left, frees the cached blocks and tries once more. Throws Error that lists what holds the
  /// memory.
  Block allocate(std::int64_t bytes, MemoryKind kind);
  void release(const Block& block) noexcept;
  /// Moves a block to another line of the memory plan: an activation that backward will need becomes `saved`.
  void relabel(Block& block, MemoryKind kind);

  MemoryUse in_use() const;       ///< now
  MemoryUse at_peak() const;      ///< at the moment of the largest total since the last reset_peak()
  std::int64_t reserved() const;  ///< taken from the source, in use or not
  std::int64_t maps() const;      ///< calls to the source so far: constant in steady state
  void reset_peak();

  static std::int64_t rounded(std::int64_t bytes);

  /// If given: gets all memory of tensors that becomes `saved`.
  std::vector<std::weak_ptr<TensorMemory>>* kept = nullptr;

 private:
  void give_back_cached();

  mutable std::mutex mutex_;
  std::unique_ptr<MemorySource> source_;
  std::map<std::int64_t, std::vector<void*>> free_;  // capacity -> addresses, last released first; none is empty
  MemoryUse use_, peak_;
  std::int64_t reserved_ = 0, maps_ = 0;
};

}  // namespace choir
