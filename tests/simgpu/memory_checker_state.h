// The implementation of MemoryChecker that a launch calls at every access.
//
// A cell of shadow memory records the last write and the last reads of a few bytes, with a stamp: the block, the number
// of __syncthreads before, the thread, and that thread's clock. Two accesses are ordered if the first belongs to an
// earlier launch, to the same block before a __syncthreads, to the same thread, or to a lane with which the second has
// had a __syncwarp since (vector clocks: Mattern, 1989; as in FastTrack, Flanagan and Freund, 2009).
#pragma once

#include <array>
#include <bit>
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
  std::uint64_t known = 0;    ///< of shared memory; the State::epochs in which a read would change nothing
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
  std::uint64_t epochs = 0;                                           ///< of all blocks
  std::array<std::array<std::uint16_t, warp>, max_threads> clocks{};  ///< [thread][lane of its warp]
  std::array<std::uint32_t, max_threads / warp> lanes_in_step{};      ///< of a warp: those with its latest clock

  /// The allocation that `address` is in, or null.
  Allocation* find(std::uintptr_t address);

  void begin_launch() { first_block_of_launch = block + 1; }
  void begin_block(int threads);
  void block_barrier() {
    ++epoch;
    ++epochs;
  }
  void warp_barrier(int warp_index, std::uint32_t mask);

  /// An access inside an allocation, aligned to its size.
  Problem access(Allocation&, std::uintptr_t address, std::int64_t bytes, AccessKind, int thread);
  /// The same of the block's shared memory.
  Problem access_shared(ShadowPages&, std::int64_t offset, std::int64_t bytes, AccessKind, int thread);
  /// `lanes` of a warp read the same shared memory: records it, if all of it was written before the last __syncthreads
  /// and the warp's lanes have had the same __syncwarps, as nearly always. Else false: then access_shared() for each.
  bool read_together(ShadowPages&, std::int64_t offset, std::int64_t bytes, int warp_index, std::uint32_t lanes) const;
  /// A thread writes shared memory that its block has not accessed since __syncthreads: records it; false if it has.
  bool write_first(ShadowPages&, std::int64_t offset, std::int64_t bytes, int thread) const;
  /// Shared memory that a copy will fill later: it must not be read yet.
  void forget_shared(ShadowPages&, std::int64_t offset, std::int64_t bytes);

  /// Returns what the launch has read and written, at most `most` intervals for each allocation, and clears it.
  std::vector<Access> take_accesses(std::size_t most);

 private:
  bool in_epoch(const Stamp& stamp) const { return stamp.block == block && stamp.epoch == epoch; }
  bool ordered(const Stamp& earlier, int thread) const;
  Stamp now(int thread) const {
    return {.block = block,
            .epoch = epoch,
            .thread = static_cast<std::uint16_t>(thread),
            .clock = clocks[static_cast<std::size_t>(thread)][static_cast<std::size_t>(thread % warp)]};
  }
  static Stamp reader(const Cell&, int lane);
  std::uint32_t unordered_readers(const Cell&, int thread) const;
  void touch(Cell&, AccessKind, int thread, bool shared, Problem&) const;
};

inline bool MemoryChecker::State::read_together(ShadowPages& pages, std::int64_t offset, std::int64_t bytes,
                                                int warp_index, std::uint32_t lanes) const {
  const auto w = static_cast<std::size_t>(warp_index);
  if ((lanes & ~lanes_in_step[w]) != 0) return false;
  const Stamp stamp = now(warp_index * warp + std::countr_zero(lanes));
  bool recorded = true;
  pages.visit(offset, bytes, [&](Cell& cell) {
    if (cell.known == epochs) return;
    if (cell.write.block != block || cell.write.epoch == epoch) {
      recorded = false;
    } else if (!in_epoch(cell.read)) {
      cell.read = stamp;
      cell.readers = lanes;
      cell.many_warps = false;
    } else if (cell.many_warps || cell.read.thread / warp != warp_index) {
      cell.many_warps = true;
      cell.known = epochs;
    } else if (cell.read.clock == stamp.clock) {
      cell.readers |= lanes;
    } else {
      recorded = false;
    }
  });
  return recorded;
}

inline bool MemoryChecker::State::write_first(ShadowPages& pages, std::int64_t offset, std::int64_t bytes,
                                              int thread) const {
  const Stamp stamp = now(thread);
  bool recorded = true;
  pages.visit(offset, bytes, [&](Cell& cell) {
    if (in_epoch(cell.write) || in_epoch(cell.read)) {
      recorded = false;
      return;
    }
    cell.write = stamp;
    cell.atomic = false;
  });
  return recorded;
}

}  // namespace choir::simgpu
