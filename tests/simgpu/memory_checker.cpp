#include "tests/simgpu/memory_checker.h"

#include <algorithm>
#include <bit>

#include "tests/simgpu/memory_checker_state.h"

namespace choir::simgpu {

void ByteSet::assign(std::int64_t offset, std::int64_t bytes, bool value) {
  while (bytes > 0) {
    if (offset % 64 == 0 && bytes >= 64) {
      const std::int64_t words = bytes / 64;
      std::fill_n(words_.begin() + offset / 64, words, value ? ~std::uint64_t{0} : 0);
      offset += 64 * words;
      bytes -= 64 * words;
      continue;
    }
    const std::int64_t part = std::min(bytes, 64 - offset % 64);
    std::uint64_t& word = words_[static_cast<std::size_t>(offset / 64)];
    word = value ? word | mask_of(offset, part) : word & ~mask_of(offset, part);
    offset += part;
    bytes -= part;
  }
}

std::int64_t ByteSet::find(std::int64_t begin, std::int64_t end, bool value) const {
  while (begin < end) {
    std::uint64_t word = words_[static_cast<std::size_t>(begin / 64)];
    if (!value) word = ~word;
    word >>= begin % 64;
    if (word != 0) return std::min(end, begin + std::countr_zero(word));
    begin += 64 - begin % 64;
  }
  return end;
}

MemoryChecker::MemoryChecker() : state_(std::make_unique<State>()) {}
MemoryChecker::~MemoryChecker() = default;

static std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

void MemoryChecker::add_allocation(const void* begin, std::int64_t bytes) {
  const std::lock_guard lock(state_->mutex);
  state_->allocations[number(begin) + static_cast<std::uintptr_t>(bytes)] =
      std::make_unique<Allocation>(number(begin), bytes);
  state_->recent = nullptr;
}

void MemoryChecker::remove_allocation(const void* begin) {
  const std::lock_guard lock(state_->mutex);
  std::erase_if(state_->allocations, [&](const auto& entry) { return entry.second->begin == number(begin); });
  state_->recent = nullptr;
}

void MemoryChecker::mark_initialised(const void* begin, std::int64_t bytes) {
  const std::lock_guard lock(state_->mutex);
  if (Allocation* a = state_->find(number(begin)))
    a->initialised.assign(static_cast<std::int64_t>(number(begin) - a->begin), bytes, true);
}

void MemoryChecker::mark_uninitialised(const void* begin, std::int64_t bytes) {
  const std::lock_guard lock(state_->mutex);
  if (Allocation* a = state_->find(number(begin)))
    a->initialised.assign(static_cast<std::int64_t>(number(begin) - a->begin), bytes, false);
}

static std::string text_of(std::uintptr_t address) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%zx", static_cast<std::size_t>(address));
  return text;
}

std::string MemoryChecker::outside(const void* begin, std::int64_t bytes) const {
  const std::lock_guard lock(state_->mutex);
  const std::uintptr_t first = number(begin);
  if (const Allocation* a = state_->find(first)) {
    const std::int64_t beyond = static_cast<std::int64_t>(first - a->begin) + bytes - a->bytes;
    if (beyond <= 0) return "";
    return std::to_string(beyond) + " bytes beyond the end of the " + std::to_string(a->bytes) +
           "-byte allocation at " + text_of(a->begin);
  }
  const auto after = state_->allocations.upper_bound(first);
  if (after != state_->allocations.begin()) {
    const Allocation& a = *std::prev(after)->second;
    return std::to_string(first - a.begin - static_cast<std::uintptr_t>(a.bytes)) + " bytes behind the end of the " +
           std::to_string(a.bytes) + "-byte allocation at " + text_of(a.begin);
  }
  return text_of(first) + " is not in an allocation";
}

const void* MemoryChecker::first_uninitialised(const void* begin, std::int64_t bytes) const {
  const std::lock_guard lock(state_->mutex);
  const Allocation* a = state_->find(number(begin));
  if (a == nullptr) return nullptr;
  const auto offset = static_cast<std::int64_t>(number(begin) - a->begin);
  const std::int64_t end = std::min(offset + bytes, a->bytes), found = a->initialised.find(offset, end, false);
  return found < end ? static_cast<const char*>(begin) + (found - offset) : nullptr;
}

Allocation* MemoryChecker::State::find(std::uintptr_t address) {
  const auto holds = [&](const Allocation& a) {
    return address >= a.begin && address < a.begin + static_cast<std::uintptr_t>(a.bytes);
  };
  if (recent != nullptr && holds(*recent)) return recent;
  const auto after = allocations.upper_bound(address);
  if (after == allocations.end() || !holds(*after->second)) return nullptr;
  return recent = after->second.get();
}

void MemoryChecker::State::begin_block(int threads) {
  ++block;
  epoch = 0;
  for (int thread = 0; thread < (threads + warp - 1) / warp * warp; ++thread) {
    auto& clock = clocks[static_cast<std::size_t>(thread)];
    clock.fill(0);
    clock[static_cast<std::size_t>(thread % warp)] = 1;
  }
  lanes_in_step.fill(~0u);
  ++epochs;
}

void MemoryChecker::State::warp_barrier(int warp_index, std::uint32_t mask) {
  std::array<std::uint16_t, warp> joined{};
  const auto each_lane = [&](auto&& body) {
    for (int lane = 0; lane < warp; ++lane)
      if ((mask >> lane & 1u) != 0)
        body(static_cast<std::size_t>(lane), clocks[static_cast<std::size_t>(warp_index * warp + lane)]);
  };
  each_lane([&](std::size_t, const auto& clock) {
    for (std::size_t i = 0; i < joined.size(); ++i) joined[i] = std::max(joined[i], clock[i]);
  });
  each_lane([&](std::size_t lane, auto& clock) {
    clock = joined;
    ++clock[lane];
  });
  const auto clock_of = [&](std::size_t lane) {
    return clocks[static_cast<std::size_t>(warp_index * warp) + lane][lane];
  };
  std::uint16_t latest = 0;
  for (std::size_t lane = 0; lane < warp; ++lane) latest = std::max(latest, clock_of(lane));
  std::uint32_t& in_step = lanes_in_step[static_cast<std::size_t>(warp_index)];
  in_step = 0;
  for (std::size_t lane = 0; lane < warp; ++lane)
    if (clock_of(lane) == latest) in_step |= 1u << lane;
}

bool MemoryChecker::State::ordered(const Stamp& earlier, int thread) const {
  if (earlier.block < first_block_of_launch) return true;
  if (earlier.block != block) return false;
  if (earlier.epoch < epoch || earlier.thread == thread) return true;
  return earlier.thread / warp == thread / warp &&
         earlier.clock <= clocks[static_cast<std::size_t>(thread)][static_cast<std::size_t>(earlier.thread % warp)];
}

/// The stamp of the last readers, lanes of one warp: the latest stamp, since none of them has read after it.
Stamp MemoryChecker::State::reader(const Cell& cell, int lane) {
  Stamp stamp = cell.read;
  stamp.thread = static_cast<std::uint16_t>(stamp.thread / warp * warp + lane);
  return stamp;
}

/// The readers whose reads are not ordered before what `thread` of the same warp does now.
std::uint32_t MemoryChecker::State::unordered_readers(const Cell& cell, int thread) const {
  std::uint32_t unordered = 0;
  for (std::uint32_t left = cell.readers; left != 0; left &= left - 1)
    if (!ordered(reader(cell, std::countr_zero(left)), thread)) unordered |= left & -left;
  return unordered;
}

void MemoryChecker::State::touch(Cell& cell, AccessKind kind, int thread, bool shared, Problem& problem) const {
  const std::uint32_t lane = 1u << (thread % warp);
  const bool same_warp = cell.read.block == block && cell.read.thread / warp == thread / warp;
  if (shared && cell.read.block != block) {  // of another block, which had other memory
    cell.read = {};
    cell.readers = 0;
    cell.many_warps = false;
  }
  const bool both_atomic = kind == AccessKind::atomic && cell.atomic;
  if (!both_atomic && cell.write.block != 0 && !(shared && cell.write.block != block) && !ordered(cell.write, thread))
    problem = {.kind = "data race", .other = cell.write};

  if (kind == AccessKind::read) {
    const bool same_time = cell.read.block == block && cell.read.epoch == epoch;
    if (same_time) {
      cell.many_warps = cell.many_warps || !same_warp;
      if (same_warp && cell.read.clock < now(thread).clock) cell.readers = unordered_readers(cell, thread);
      cell.readers |= lane;
      if (same_warp && cell.read.clock >= now(thread).clock) return;
    } else {
      // A read by this block does not replace the readers of other blocks of the launch.
      cell.many_warps = cell.read.block >= first_block_of_launch && cell.read.block != block;
      cell.readers = lane;
    }
    cell.read = now(thread);
    return;
  }
  const bool concurrent_block =
      cell.read.block >= first_block_of_launch && cell.read.block != block && cell.read.block != 0;
  if (concurrent_block) problem = {.kind = "data race", .other = cell.read};
  if (cell.read.block == block && cell.read.epoch == epoch) {
    if (cell.many_warps || !same_warp)
      problem = {.kind = "data race", .other = cell.read};
    else if (const std::uint32_t others = unordered_readers(cell, thread) & ~lane; others != 0)
      problem = {.kind = "data race", .other = reader(cell, std::countr_zero(others))};
  }
  cell.write = now(thread);
  cell.atomic = kind == AccessKind::atomic;
  cell.known = 0;
}

Problem MemoryChecker::State::access(Allocation& a, std::uintptr_t address, std::int64_t bytes, AccessKind kind,
                                     int thread) {
  const auto offset = static_cast<std::int64_t>(address - a.begin);
  Problem problem;
  if (kind != AccessKind::write) {
    a.read.add(offset, bytes);
    if (!a.initialised.has_all(offset, bytes)) problem.kind = "uninitialised read";
  }
  if (kind != AccessKind::read) {
    a.written.add(offset, bytes);
    a.initialised.add(offset, bytes);
  }
  if (a.touched_end == 0) a.touched_begin = offset;
  a.touched_begin = std::min(a.touched_begin, offset);
  a.touched_end = std::max(a.touched_end, offset + bytes);
  a.pages.visit(offset, bytes, [&](Cell& cell) { touch(cell, kind, thread, false, problem); });
  return problem;
}

Problem MemoryChecker::State::access_shared(ShadowPages& pages, std::int64_t offset, std::int64_t bytes,
                                            AccessKind kind, int thread) {
  Problem problem;
  pages.visit(offset, bytes, [&](Cell& cell) {
    if (kind != AccessKind::write && cell.write.block != block) problem.kind = "uninitialised read";
    touch(cell, kind, thread, true, problem);
  });
  return problem;
}

void MemoryChecker::State::forget_shared(ShadowPages& pages, std::int64_t offset, std::int64_t bytes) {
  pages.visit(offset, bytes, [](Cell& cell) {
    cell.write = {};
    cell.known = 0;
  });
}

/// The intervals of bytes in `set`; the nearest are joined until there are at most `most`.
static std::vector<Access> intervals(const Allocation& a, const ByteSet& set, bool write, std::size_t most) {
  std::vector<Access> found;
  const auto* base = reinterpret_cast<const char*>(a.begin);
  for (std::int64_t at = set.find(a.touched_begin, a.touched_end, true); at < a.touched_end;
       at = set.find(at, a.touched_end, true)) {
    const std::int64_t end = set.find(at, a.touched_end, false);
    found.push_back({.begin = base + at, .bytes = end - at, .write = write});
    at = end;
  }
  if (found.size() <= most) return found;

  const auto gap = [&](std::size_t i) {  // between interval i and the next
    return static_cast<const char*>(found[i + 1].begin) - (static_cast<const char*>(found[i].begin) + found[i].bytes);
  };
  std::vector<std::ptrdiff_t> gaps;
  for (std::size_t i = 0; i + 1 < found.size(); ++i) gaps.push_back(gap(i));
  std::nth_element(gaps.begin(), gaps.begin() + static_cast<std::ptrdiff_t>(most) - 1, gaps.end(), std::greater<>());
  const std::ptrdiff_t kept = gaps[most - 1];  // gaps of this size and smaller ones are closed
  std::vector<Access> merged = {found[0]};
  for (std::size_t i = 0; i + 1 < found.size(); ++i) {
    if (gap(i) > kept)
      merged.push_back(found[i + 1]);
    else
      merged.back().bytes = static_cast<const char*>(found[i + 1].begin) + found[i + 1].bytes -
                            static_cast<const char*>(merged.back().begin);
  }
  return merged;
}

std::vector<Access> MemoryChecker::State::take_accesses(std::size_t most) {
  std::vector<Access> accesses;
  for (auto& [end, a] : allocations) {
    if (a->touched_end == 0) continue;
    for (const auto& [set, write] : {std::pair<ByteSet*, bool>{&a->read, false}, {&a->written, true}}) {
      const std::vector<Access> found = intervals(*a, *set, write, most);
      accesses.insert(accesses.end(), found.begin(), found.end());
      set->assign(a->touched_begin, a->touched_end - a->touched_begin, false);
    }
    a->touched_begin = a->touched_end = 0;
  }
  return accesses;
}

}  // namespace choir::simgpu
