// The allocator: free blocks used again, counted use, and no new memory after the first steps.
#include "framework/core/allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

namespace choir::tests {
namespace {

TEST(Allocator, RoundsToPagesAndAboveTwoMegabytesToSixteenPages) {
  EXPECT_EQ(Allocator::rounded(0), 4096);
  EXPECT_EQ(Allocator::rounded(1), 4096);
  EXPECT_EQ(Allocator::rounded(4096), 4096);
  EXPECT_EQ(Allocator::rounded(4097), 8192);
  EXPECT_EQ(Allocator::rounded(2 << 20), 2 << 20);
  EXPECT_EQ(Allocator::rounded((2 << 20) + 1), (2 << 20) + 65536);
}

TEST(Allocator, GivesAReleasedBlockToTheNextRequestOfItsRoundedSize) {
  Allocator allocator(host_memory());
  const auto a = allocator.allocate(5000, MemoryKind::temporary);
  const auto b = allocator.allocate(5000, MemoryKind::temporary);
  EXPECT_NE(a.address, b.address);
  allocator.release(a);
  EXPECT_NE(allocator.allocate(9000, MemoryKind::temporary).address, a.address) << "another size";
  EXPECT_EQ(allocator.allocate(8000, MemoryKind::temporary).address, a.address) << "the same two pages";
}

TEST(Allocator, GivesTheSmallestFreeBlockThatFitsIfHalfOfItAtMostStaysUnused) {
  Allocator allocator(counted_memory());
  const auto page = [](std::int64_t pages) { return pages * 4096; };
  const auto a = allocator.allocate(page(30), MemoryKind::temporary);
  const auto b = allocator.allocate(page(36), MemoryKind::temporary);
  allocator.release(a);
  allocator.release(b);
  EXPECT_EQ(allocator.reserved(), page(66));
  const auto first = allocator.allocate(page(15), MemoryKind::temporary);
  EXPECT_EQ(first.address, a.address);
  EXPECT_EQ(allocator.in_use().total(), page(15)) << "what was asked for counts";
  const auto second = allocator.allocate(page(17), MemoryKind::temporary);
  EXPECT_NE(second.address, b.address) << "half of 36 pages is 18";
  EXPECT_EQ(allocator.allocate(page(18), MemoryKind::temporary).address, b.address);
  allocator.release(first);
  EXPECT_EQ(allocator.allocate(page(30), MemoryKind::temporary).address, a.address) << "it is as large as it was";
  EXPECT_EQ(allocator.reserved(), page(66 + 17));
}

TEST(Allocator, TheSecondStepGetsTheAddressesOfTheFirstAndMapsNothing) {
  Allocator allocator(host_memory());
  const auto step = [&] {
    std::vector<void*> addresses;
    std::vector<Allocator::Block> held;
    for (const std::int64_t bytes : {100, 70000, 100, 5 << 20, 100, 70000}) {
      held.push_back(allocator.allocate(bytes, MemoryKind::temporary));
      addresses.push_back(held.back().address);
      if (held.size() % 3 == 0) {
        allocator.release(held.front());
        held.erase(held.begin());
      }
    }
    for (const auto& block : held) allocator.release(block);
    return addresses;
  };
  step();  // fills the lists
  const auto second = step();
  const std::int64_t maps = allocator.maps(), reserved = allocator.reserved();
  for (int i = 0; i < 4; ++i) step();
  EXPECT_EQ(std::set<void*>(second.begin(), second.end()).size(), 4u);
  EXPECT_EQ(allocator.maps(), maps);
  EXPECT_EQ(allocator.reserved(), reserved);
  EXPECT_EQ(allocator.in_use().total(), 0);
}

TEST(Allocator, CountsByKindAndRemembersThePeak) {
  Allocator allocator(host_memory());
  const auto bytes = [](const MemoryUse& use, MemoryKind kind) { return use.bytes[static_cast<std::size_t>(kind)]; };
  auto a = allocator.allocate(4096, MemoryKind::temporary);
  const auto b = allocator.allocate(8192, MemoryKind::parameters);
  EXPECT_EQ(bytes(allocator.in_use(), MemoryKind::temporary), 4096);
  EXPECT_EQ(bytes(allocator.in_use(), MemoryKind::parameters), 8192);
  allocator.relabel(a, MemoryKind::saved);
  EXPECT_EQ(bytes(allocator.in_use(), MemoryKind::temporary), 0);
  EXPECT_EQ(bytes(allocator.in_use(), MemoryKind::saved), 4096);
  allocator.release(b);
  EXPECT_EQ(allocator.in_use().total(), 4096);
  EXPECT_EQ(allocator.at_peak().total(), 12288);
  allocator.reset_peak();
  EXPECT_EQ(allocator.at_peak().total(), 4096);
  allocator.release(a);
  EXPECT_EQ(allocator.in_use().total(), 0);
  EXPECT_EQ(bytes(allocator.in_use(), MemoryKind::saved), 0);
}

TEST(Allocator, HostMemoryIsZeroWritableAndLargeBlocksStartOnHugePages) {
  Allocator allocator(host_memory());
  const auto small = allocator.allocate(100, MemoryKind::temporary);
  const auto large = allocator.allocate(3 << 20, MemoryKind::temporary);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small.address) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.address) % (2 << 20), 0u);
  for (const auto& block : {small, large}) {
    auto* bytes = static_cast<unsigned char*>(block.address);
    EXPECT_EQ(std::count(bytes, bytes + block.bytes, 0), block.bytes);
    std::memset(bytes, 1, static_cast<std::size_t>(block.bytes));
  }
}

TEST(Allocator, CountedMemoryIsCountedAlikeAndNoTwoBlocksOverlap) {
  Allocator counted(counted_memory()), real(host_memory());
  std::uintptr_t end = 0;
  for (const std::int64_t bytes : {std::int64_t{100}, std::int64_t{1} << 45, std::int64_t{100}}) {
    const auto block = counted.allocate(bytes, MemoryKind::gradients);
    EXPECT_GE(reinterpret_cast<std::uintptr_t>(block.address), end);
    end = reinterpret_cast<std::uintptr_t>(block.address) + static_cast<std::uintptr_t>(block.bytes);
  }
  EXPECT_EQ(counted.in_use().total(), (std::int64_t{1} << 45) + 2 * 4096);
  EXPECT_EQ(counted.maps(), 3);
}

}  // namespace
}  // namespace choir::tests
