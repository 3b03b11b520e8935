#include "tests/simgpu/nccl_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace choir::simgpu {
namespace {

constexpr std::int64_t page = 4096;

std::int64_t table_bytes(std::int64_t ranks) {
  const std::int64_t bytes = 64 + ranks * static_cast<std::int64_t>(sizeof(Arena::Member)) +
                             ranks * ranks * static_cast<std::int64_t>(sizeof(Arena::Channel));
  return (bytes + page - 1) / page * page;
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("simulated NCCL: cannot " + what + ": " + std::strerror(errno));
}

}  // namespace

// New shared memory is zero, the initial value of every counter, and occupies no memory until it is written.
Arena::Arena(const std::string& name, int ranks)
    : name_(name), ranks_(ranks), bytes_(table_bytes(ranks) + (ranks + std::int64_t{ranks} * ranks) * slot_bytes) {
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) fail("open the shared memory " + name);
  void* memory = MAP_FAILED;
  if (ftruncate(file, bytes_) == 0)
    memory = mmap(nullptr, static_cast<std::size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = errno;
  close(file);
  errno = error;
  if (memory == MAP_FAILED) fail("map the shared memory " + name);
  memory_ = static_cast<std::byte*>(memory);

  std::int32_t others = 0;
  if (!header().ranks.compare_exchange_strong(others, ranks_) && others != ranks_) {
    munmap(memory_, static_cast<std::size_t>(bytes_));
    throw std::runtime_error("simulated NCCL: this rank creates a communicator of " + std::to_string(ranks_) +
                             " ranks, another rank one of " + std::to_string(others));
  }
  if (header().attached.fetch_add(1) + 1 == ranks_) shm_unlink(name_.c_str());
}

Arena::~Arena() {
  if (!complete()) shm_unlink(name_.c_str());  // the missing ranks are no longer waited for
  munmap(memory_, static_cast<std::size_t>(bytes_));
}

bool Arena::complete() const { return header().attached == ranks_; }

Arena::Member& Arena::member(int rank) const { return reinterpret_cast<Member*>(memory_ + 64)[rank]; }

Arena::Channel& Arena::channel(int from, int to) const {
  return reinterpret_cast<Channel*>(memory_ + 64 + ranks_ * sizeof(Member))[from * ranks_ + to];
}

std::byte* Arena::slot(int rank) const { return memory_ + table_bytes(ranks_) + rank * slot_bytes; }

std::byte* Arena::channel_slot(int from, int to) const { return slot(ranks_ + from * ranks_ + to); }

}  // namespace choir::simgpu
