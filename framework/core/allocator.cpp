#include "framework/core/allocator.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <numeric>

#include "framework/core/error.h"

namespace choir {
namespace {

constexpr std::int64_t huge_page = 2 << 20;

class HostMemory : public MemorySource {
 public:
  void* map(std::int64_t bytes) override {
    // A large block starts on a huge-page border: the slack around it is given back before it is touched.
    const std::int64_t slack = bytes >= huge_page ? huge_page : 0;
    void* raw = mmap(nullptr, static_cast<std::size_t>(bytes + slack), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    if (slack == 0) return raw;
    auto* begin = static_cast<char*>(raw);
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t aligned_address = (address + huge_page - 1) / huge_page * huge_page;
    char* aligned = begin + (aligned_address - address);
    if (aligned != begin) munmap(begin, static_cast<std::size_t>(aligned - begin));
    char* end = aligned + bytes;
    char* raw_end = begin + bytes + slack;
    if (raw_end != end) munmap(end, static_cast<std::size_t>(raw_end - end));
    madvise(aligned, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);  // a hint: without huge pages it is only slower
    return aligned;
  }
  void unmap(void* address, std::int64_t bytes) noexcept override { munmap(address, static_cast<std::size_t>(bytes)); }
};

class CountedMemory : public MemorySource {
 public:
  void* map(std::int64_t bytes) override {
    const std::uintptr_t address = next_;
    next_ += static_cast<std::uintptr_t>(bytes);
    return reinterpret_cast<void*>(address);
  }
  void unmap(void*, std::int64_t) noexcept override {}

 private:
  std::uintptr_t next_ = std::uintptr_t{1} << 48;  // outside every address a process can map: a read of it faults
};

}  // namespace

std::unique_ptr<MemorySource> host_memory() { return std::make_unique<HostMemory>(); }
std::unique_ptr<MemorySource> counted_memory() { return std::make_unique<CountedMemory>(); }

const char* name_of(MemoryKind kind) {
  constexpr const char* names[] = {"parameters",        "gradients", "optimizer state",
                                   "saved activations", "workspace", "temporaries"};
  return names[static_cast<int>(kind)];
}

std::int64_t MemoryUse::total() const { return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}); }

// Whole pages, so that every block has its own mapping; above 2 MB sixteen pages, so that near sizes share a list.
std::int64_t Allocator::rounded(std::int64_t bytes) {
  const std::int64_t unit = bytes < huge_page ? 4096 : 65536;
  return bytes <= 0 ? unit : (bytes + unit - 1) / unit * unit;
}

Allocator::~Allocator() { give_back_cached(); }

void Allocator::give_back_cached() {
  for (const auto& [bytes, addresses] : free_)
    for (void* address : addresses) {
      source_->unmap(address, bytes);
      reserved_ -= bytes;
    }
  free_.clear();
}

static Error out_of_memory(std::int64_t bytes, MemoryKind kind, const MemoryUse& use) {
  const auto megabytes = [](std::int64_t count) { return fmt::format("{:.1f} MB", static_cast<double>(count) / 1e6); };
  std::string holders;
  for (std::size_t i = 0; i < use.bytes.size(); ++i)
    if (use.bytes[i] > 0)
      holders += fmt::format("{}{} {}", holders.empty() ? "" : ", ", name_of(static_cast<MemoryKind>(i)),
                             megabytes(use.bytes[i]));
  const auto share = [&](MemoryKind k) { return use.bytes[static_cast<std::size_t>(k)]; };
  const bool activations = share(MemoryKind::saved) + share(MemoryKind::temporary) > use.total() / 2;
  return Error({.what = fmt::format("no memory is left for {} of {}", megabytes(bytes), name_of(kind)),
                .why = fmt::format("in use are {}: {}", megabytes(use.total()), holders.empty() ? "nothing" : holders),
                .fix = activations ? "lower parallel.micro_batch, or set train.recompute=block"
                                   : "raise parallel.tensor or parallel.zero, or use more ranks; `choir plan` "
                                     "shows what a layout needs"});
}

Allocator::Block Allocator::allocate(std::int64_t bytes, MemoryKind kind) {
  const std::lock_guard lock(mutex_);
  Block block{.address = nullptr, .bytes = rounded(bytes), .capacity = rounded(bytes), .kind = kind};
  const auto found = free_.lower_bound(block.bytes);
  if (found != free_.end() && found->first <= 2 * block.bytes) {
    block.capacity = found->first;
    block.address = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) free_.erase(found);
  } else {
    block.address = source_->map(block.bytes);
    if (block.address == nullptr) {
      give_back_cached();
      block.address = source_->map(block.bytes);
    }
    if (block.address == nullptr) throw out_of_memory(block.bytes, kind, use_);
    reserved_ += block.bytes;
    ++maps_;
  }
  use_.bytes[static_cast<std::size_t>(kind)] += block.bytes;
  if (use_.total() > peak_.total()) peak_ = use_;
  return block;
}

void Allocator::release(const Block& block) noexcept {
  const std::lock_guard lock(mutex_);
  use_.bytes[static_cast<std::size_t>(block.kind)] -= block.bytes;
  free_[block.capacity].push_back(block.address);
}

void Allocator::relabel(Block& block, MemoryKind kind) {
  const std::lock_guard lock(mutex_);
  use_.bytes[static_cast<std::size_t>(block.kind)] -= block.bytes;
  use_.bytes[static_cast<std::size_t>(kind)] += block.bytes;
  block.kind = kind;
}

MemoryUse Allocator::in_use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

MemoryUse Allocator::at_peak() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

std::int64_t Allocator::reserved() const {
  const std::lock_guard lock(mutex_);
  return reserved_;
}

std::int64_t Allocator::maps() const {
  const std::lock_guard lock(mutex_);
  return maps_;
}

void Allocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  peak_ = use_;
}

}  // namespace choir
