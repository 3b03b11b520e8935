// The implementation of MemoryChecker that a launch calls at every access.
//
// A cell of shadow memory records the last write and the last reads of a few bytes, with a stamp: the block, the number
// of __syncthreads before, the thread, and that thread's clock. Two accesses are ordered if the first belongs to an
// earlier launch, to the same block before a __syncthreads, to the same thread, or to a lane with which the second has
// had a __syncwarp since (vector clocks: Mattern, 1989; as in FastTrack, Flanagan and Freund, 2009).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/simgpu/memory_checker.h"

namespace choir::simgpu {

enum class AccessKind : std::uint8_t { read, write, atomic };

struct Stamp {
  std::uint32_t block = 0;  ///< counted over all launches, from 1; 0: never
  std::uint32_t epoch = 0;  ///< __syncthreads before
  std::uint16_t thread = 0, clock = 0;
};

struct Cell {
  Stamp write, read;
  std::uint32_t readers = 0;  ///< lanes of the warp of `read` that have read in the same epoch
  bool atomic = false;        ///< the last write
  bool many_warps = false;    ///< other warps or blocks have read as well
};

/// What is wrong with an access; kind is null if it is correct.
struct Problem {
  const char* kind = nullptr;
  Stamp other;  ///< of a race
};

/// The cells of a range of memory, created when they are first accessed. A page has a cell for 4 bytes until something
/// smaller is accessed in it.
class ShadowPages {
 public:
  explicit ShadowPages(std::int64_t bytes) : pages_(static_cast<std::size_t>((bytes + page_bytes - 1) / page_bytes)) {}

  /// visit(cell) for each cell of [offset, offset + bytes), bytes a power of two and offset a multiple of it.
  template <class Visit>
  void visit(std::int64_t offset, std::int64_t bytes, Visit&& visit_cell) {
    Page& page = pages_[static_cast<std::size_t>(offset / page_bytes)];
    if (page.cells.empty()) page.cells.resize(static_cast<std::size_t>(page_bytes) >> page.shift);
    while (bytes < std::int64_t{1} << page.shift) halve(page);
    const auto first = static_cast<std::size_t>((offset % page_bytes) >> page.shift);
    const auto count = static_cast<std::size_t>(bytes >> page.shift);
    for (std::size_t i = first; i < first + count; ++i) visit_cell(page.cells[i]);
  }

 private:
  static constexpr std::int64_t page_bytes = 1024;
  struct Page {
    int shift = 2;  // log2 of the bytes of a cell
    std::vector<Cell> cells;
  };

  static void halve(Page& page) {
    std::vector<Cell> cells;
    cells.reserve(2 * page.cells.size());
    for (const Cell& cell : page.cells) cells.insert(cells.end(), 2, cell);
    page.cells = std::move(cells);
    --page.shift;
  }

  std::vector<Page> pages_;
};

/// One bit for each byte.
class ByteSet {
 public:
  explicit ByteSet(std::int64_t bytes) : words_(static_cast<std::size_t>(bytes / 64 + 1)) {}

  /// [offset, offset + bytes) within 64 aligned bytes.
  bool has_all(std::int64_t offset, std::int64_t bytes) const {
    const std::uint64_t mask = mask_of(offset, bytes);
    return (words_[static_cast<std::size_t>(offset / 64)] & mask) == mask;
  }
  void add(std::int64_t offset, std::int64_t bytes) {
    words_[static_cast<std::size_t>(offset / 64)] |= mask_of(offset, bytes);
  }
  /// Any range.
  void assign(std::int64_t offset, std::int64_t bytes, bool value);
  /// The first byte of [begin, end) whose bit is `value`, or `end`.
  std::int64_t find(std::int64_t begin, std::int64_t end, bool value) const;

 private:
  static std::uint64_t mask_of(std::int64_t offset, std::int64_t bytes) {
    const std::uint64_t ones = bytes >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bytes) - 1;
    return ones << (offset % 64);
  }
  std::vector<std::uint64_t> words_;
};

struct Allocation {
  Allocation(std::uintptr_t first, std::int64_t size)
      : begin(first), bytes(size), initialised(size), read(size), written(size), pages(size) {}

  std::uintptr_t begin;
  std::int64_t bytes;
  ByteSet initialised;
  ByteSet read, written;  ///< by the launch that runs
  std::int64_t touched_begin = 0, touched_end = 0;
  ShadowPages pages;
};

struct MemoryChecker::State {
  static constexpr int warp = 32, max_threads = 1024;

  std::mutex mutex;                                                   ///< held during a launch
  std::map<std::uintptr_t, std::unique_ptr<Allocation>> allocations;  ///< by their end
  Allocation* recent = nullptr;

  // The block that runs.
  std::uint32_t block = 0, first_block_of_launch = 1, epoch = 0;
  std::array<std::array<std::uint16_t, warp>, max_threads> clocks{};  ///< [thread][lane of its warp]
  std::array<std::uint16_t, max_threads / warp> latest_clocks{};      ///< of the lanes of each warp

  /// The allocation that `address` is in, or null.
  Allocation* find(std::uintptr_t address);

  void begin_launch() { first_block_of_launch = block + 1; }
  void begin_block(int threads);
  void block_barrier() { ++epoch; }
  void warp_barrier(int warp_index, std::uint32_t mask);

  /// An access inside an allocation, aligned to its size.
  Problem access(Allocation&, std::uintptr_t address, std::int64_t bytes, AccessKind, int thread);
  /// The same of the block's shared memory.
  Problem access_shared(ShadowPages&, std::int64_t offset, std::int64_t bytes, AccessKind, int thread);
  /// The lanes `lanes` of a warp read shared memory that another lane of it has just read. True if the check of that
  /// lane is enough.
  bool join_readers(ShadowPages&, std::int64_t offset, std::int64_t bytes, int warp_index, std::uint32_t lanes);
  /// Shared memory that a copy will fill later: it must not be read yet.
  void forget_shared(ShadowPages&, std::int64_t offset, std::int64_t bytes);

  /// Returns what the launch has read and written, at most `most` intervals for each allocation, and clears it.
  std::vector<Access> take_accesses(std::size_t most);

 private:
  bool ordered(const Stamp& earlier, int thread) const;
  Stamp now(int thread) const;
  static Stamp reader(const Cell&, int lane);
  std::uint32_t unordered_readers(const Cell&, int thread) const;
  bool only_adds_a_reader(const Cell&, int warp_index, std::uint16_t clock) const;
  void touch(Cell&, AccessKind, int thread, bool shared, Problem&) const;
};

}  // namespace choir::simgpu
