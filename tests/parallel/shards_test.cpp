// Which ranges of the flat order are messages, which rank updates what, and where parameters lie in ranges.
#include "framework/parallel/shards.h"

#include <gtest/gtest.h>

#include <random>

namespace choir::tests {
namespace {

TEST(Buckets, AreCutFromTheBeginAtMultiplesOfTheAlignment) {
  EXPECT_EQ(cut({0, 300}, 1000, 10), (std::vector<FlatRange>{{0, 300}}));
  EXPECT_EQ(cut({100, 400}, 125, 10), (std::vector<FlatRange>{{100, 220}, {220, 340}, {340, 400}}));
  EXPECT_EQ(cut({0, 30}, 1, 10), (std::vector<FlatRange>{{0, 10}, {10, 20}, {20, 30}}));
  EXPECT_TRUE(cut({30, 30}, 100, 10).empty());
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

// Every element is in one bucket, of its group and its kind; counted by one rank; updated by every rank or by one of
// each replica.
TEST(Buckets, CoverEverythingOnceForAnyGroupsRanksAndStages) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    ParameterStore store;
    for (std::uint32_t group = 0; group <= random() % 5; ++group) {
      store.begin_group();
      for (std::uint32_t weight = 0; weight <= random() % 4; ++weight)
        store.add_weight(1 + random() % 40, 1 + random() % 30, random() % 2 == 0);
    }
    const int shard = 1 + static_cast<int>(random() % 3), ranks = shard * (1 + static_cast<int>(random() % 3));
    store.lay_out(bucket_alignment(ranks));
    const std::int64_t target = 1 + random() % 4000;
    for (const int zero : {0, 1, 2, 3}) {
      const auto size = static_cast<std::size_t>(store.size());
      std::vector<int> counted(size), updated(size);
      for (int rank = 0; rank < ranks; ++rank) {
        std::int64_t next = 0;
        for (const Bucket& bucket : make_buckets(store, zero, {ranks, rank, shard}, target)) {
          ASSERT_EQ(bucket.range.begin, next);
          next = bucket.range.end;
          const FlatRange of_kind = bucket.matrix ? store.matrices(bucket.group) : store.vectors(bucket.group);
          ASSERT_LE(of_kind.begin, bucket.range.begin);
          ASSERT_LE(bucket.range.end, of_kind.end);
          ASSERT_EQ(bucket.range.begin % bucket_alignment(ranks), 0);
          for (std::int64_t i = bucket.counted.begin; i < bucket.counted.end; ++i) {
            ASSERT_TRUE(bucket.updated.begin <= i && i < bucket.updated.end) << "counted, but not updated";
            ++counted[static_cast<std::size_t>(i)];
          }
          for (std::int64_t i = bucket.updated.begin; i < bucket.updated.end; ++i)
            ++updated[static_cast<std::size_t>(i)];
        }
        ASSERT_EQ(next, store.size());
      }
      ASSERT_EQ(counted, std::vector<int>(size, 1));
      ASSERT_EQ(updated, std::vector<int>(size, zero == 0 ? ranks : ranks / shard));
    }
  }
}

/// The bytes of parameters and gradients that a rank of `ranks` holds between two steps, of a model of 8 groups.
std::int64_t held(int zero, DType type, MemoryKind kind, bool training = true) {
  constexpr int ranks = 4;
  CallRing ring;
  Device device(CountOnly{}, 1);
  Mesh mesh = make_counting_mesh(0, {.data = ranks}, device, ring);
  Runtime runtime{.device = device, .compute_type = type, .scalars = {}};
  Context context{.runtime = runtime, .mesh = mesh};
  ParameterStore store;
  for (int group = 0; group < 8; ++group) {
    store.begin_group();
    store.add_weight(1024, 1024, true);
  }
  const Shards shards(store, {.zero = zero, .training = training}, context);
  return device.allocator().in_use().bytes[static_cast<std::size_t>(kind)];
}

// Per element of 8 M, on 4 ranks. A value and its master are the same memory if both are f32 and the values are whole.
TEST(Shards, HoldTheBytesOfTheirStage) {
  constexpr std::int64_t elements = 8 << 20;
  const std::int64_t f32_parameters[] = {4 * elements, 4 * elements, 4 * elements, elements};
  const std::int64_t bf16_parameters[] = {6 * elements, 3 * elements, 3 * elements, elements * 3 / 2};
  const std::int64_t gradients[] = {4 * elements, 4 * elements, elements, elements};
  for (const int zero : {0, 1, 2, 3}) {
    EXPECT_EQ(held(zero, DType::f32, MemoryKind::parameters), f32_parameters[zero]) << zero;
    EXPECT_EQ(held(zero, DType::bf16, MemoryKind::parameters), bf16_parameters[zero]) << zero;
    EXPECT_EQ(held(zero, DType::f32, MemoryKind::gradients), gradients[zero]) << zero;
    EXPECT_EQ(held(zero, DType::bf16, MemoryKind::parameters, false), zero < 3 ? 2 * elements : elements / 2) << zero;
    EXPECT_EQ(held(zero, DType::bf16, MemoryKind::gradients, false), 0) << zero;
  }
}

TEST(Parts, AreTheRunsOfEachParameterInTheRanges) {
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
  store.lay_out(16);
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
