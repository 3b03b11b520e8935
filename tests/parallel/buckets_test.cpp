// Buckets of the flat gradient array, their parts, and where parameters lie in them.
#include <gtest/gtest.h>

#include <random>

#include "framework/parallel/data.h"

namespace choir::tests {
namespace {

/// Backward order, covering [0, size) once, borders aligned.
void expect_cover(const std::vector<FlatRange>& buckets, std::int64_t size, std::int64_t alignment) {
  std::int64_t end = size;
  for (const FlatRange& bucket : buckets) {
    ASSERT_EQ(bucket.end, end);
    ASSERT_LT(bucket.begin, bucket.end);
    ASSERT_EQ(bucket.begin % alignment, 0);
    end = bucket.begin;
  }
  ASSERT_EQ(end, 0);
}

TEST(Buckets, SmallGroupsShareAndLargeOnesAreCut) {
  EXPECT_EQ(make_buckets({0, 100, 200}, 300, 1000, 10), (std::vector<FlatRange>{{0, 300}}));
  EXPECT_EQ(make_buckets({0, 100, 200}, 300, 150, 10), (std::vector<FlatRange>{{150, 300}, {0, 150}}));
  EXPECT_EQ(make_buckets({0}, 300, 120, 10), (std::vector<FlatRange>{{180, 300}, {60, 180}, {0, 60}}));
  EXPECT_EQ(make_buckets({0}, 30, 1, 10), (std::vector<FlatRange>{{20, 30}, {10, 20}, {0, 10}}));
}

TEST(Buckets, CoverEverythingOnceForAnyGroups) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    const std::int64_t alignment = bucket_alignment(1 + random() % 5);
    std::vector<std::int64_t> begins;
    std::int64_t size = 0;
    for (std::uint32_t group = 0; group <= random() % 8; ++group) {
      begins.push_back(size);
      size += alignment * (1 + random() % 40);
    }
    const std::int64_t target = 1 + random() % 4000;
    expect_cover(make_buckets(begins, size, target, alignment), size, alignment);
    if (HasFatalFailure()) return;
  }
}

TEST(Buckets, PartsAreEqualAlignedAndDisjoint) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    const FlatRange bucket{32 * ranks, 32 * ranks + 7 * bucket_alignment(ranks)};
    std::int64_t next = bucket.begin;
    for (int rank = 0; rank < ranks; ++rank) {
      const FlatRange part = part_of(bucket, ranks, rank);
      EXPECT_EQ(part.begin, next);
      EXPECT_EQ(part.count(), 7 * 16);
      next = part.end;
    }
    EXPECT_EQ(next, bucket.end);
  }
}

TEST(Parts, AreTheRunsOfEachParameterInTheRanges) {
  Device device(CountOnly{}, 1);
  Runtime runtime{.device = device};
  ParameterStore store;
  store.begin_group();
  Weight* matrix = store.add_weight(6, 10, true);  // [0, 60)
  store.add({.name = "q", .shape = {4, 10}, .held = {0, 4, 0, 10}, .owned_end = 4, .weight = matrix});
  store.add({.name = "k",
             .shape = {4, 10},
             .held = {2, 4, 0, 10},
             .owned_begin = 1,
             .owned_end = 2,
             .weight = matrix,
             .first_row = 4});
  Weight* vector = store.add_weight(5, 1, false);  // [64, 69)
  store.add({.name = "bias", .shape = {5}, .held = {0, 5, 0, 1}, .owned_end = 0, .weight = vector});
  store.allocate(runtime, 16);
  ASSERT_EQ(store.size(), 80);

  const auto describe = [&](const std::vector<FlatRange>& ranges, bool owned_only) {
    std::string text;
    for (const ParameterPart& part : parts_in(store, ranges, owned_only))
      text += part.parameter->name + "[" + std::to_string(part.begin) + "," + std::to_string(part.end) + ")@" +
              std::to_string(part.flat_begin) + " ";
    return text;
  };
  EXPECT_EQ(describe({{0, 80}}, false), "q[0,40)@0 k[0,20)@40 bias[0,5)@64 ");
  EXPECT_EQ(describe({{0, 80}}, true), "q[0,40)@0 k[10,20)@50 ");
  EXPECT_EQ(describe({{32, 48}}, false), "q[32,40)@32 k[0,8)@40 ");
  EXPECT_EQ(describe({{32, 48}}, true), "q[32,40)@32 ");
  EXPECT_EQ(describe({{0, 16}, {48, 66}}, false), "q[0,16)@0 k[8,20)@48 bias[0,2)@64 ");
  EXPECT_EQ(describe({{69, 80}}, false), "");
}

}  // namespace
}  // namespace choir::tests
