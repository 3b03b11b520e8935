// Heads on ranks: the design's examples, and every partition up to 32 heads.
#include "framework/parallel/head_partition.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace choir::tests {
namespace {

TEST(HeadPartition, ExamplesOfTheDesign) {
  const HeadPartition gpt2_xl{.heads = 25, .kv_heads = 25, .ranks = 8};
  for (std::int64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(gpt2_xl.query(rank).count(), rank == 0 ? 4 : 3);
    EXPECT_EQ(gpt2_xl.key_value(rank), gpt2_xl.query(rank));
  }
  EXPECT_FALSE(gpt2_xl.any_shared());
  EXPECT_DOUBLE_EQ(gpt2_xl.imbalance(), 4 / (25.0 / 8));

  const HeadPartition grouped{.heads = 8, .kv_heads = 2, .ranks = 3};
  EXPECT_EQ(grouped.query(0), (Slice{0, 3}));
  EXPECT_EQ(grouped.query(1), (Slice{3, 6}));
  EXPECT_EQ(grouped.query(2), (Slice{6, 8}));
  EXPECT_EQ(grouped.key_value(0), (Slice{0, 1}));
  EXPECT_EQ(grouped.key_value(1), (Slice{0, 2}));
  EXPECT_EQ(grouped.key_value(2), (Slice{1, 2}));
  EXPECT_EQ(grouped.owned_key_value(0), (Slice{0, 1}));
  EXPECT_EQ(grouped.owned_key_value(1), (Slice{1, 2}));
  EXPECT_EQ(grouped.owned_key_value(2).count(), 0);
  EXPECT_EQ(grouped.describe(),
            "rank 0: query heads 0-2 (3), key/value head 0 (replicated: 0)\n"
            "rank 1: query heads 3-5 (3), key/value heads 0-1 (replicated: 0, 1)\n"
            "rank 2: query heads 6-7 (2), key/value head 1 (replicated: 1)\n");
}

TEST(HeadPartition, EveryPartitionUpTo32Heads) {
  for (std::int64_t heads = 1; heads <= 32; ++heads)
    for (std::int64_t kv_heads = 1; kv_heads <= heads; ++kv_heads)
      for (std::int64_t ranks = 1; heads % kv_heads == 0 && ranks <= heads; ++ranks) {
        SCOPED_TRACE(std::to_string(heads) + " heads, " + std::to_string(kv_heads) + " key/value, " +
                     std::to_string(ranks) + " ranks");
        const HeadPartition p{.heads = heads, .kv_heads = kv_heads, .ranks = ranks};
        std::int64_t next = 0, least = heads, most = 0;
        std::vector<int> owners(static_cast<std::size_t>(kv_heads)), holders(owners);
        for (std::int64_t rank = 0; rank < ranks; ++rank) {
          const Slice q = p.query(rank), kv = p.key_value(rank), owned = p.owned_key_value(rank);
          ASSERT_EQ(q.begin, next) << "contiguous";
          next = q.end;
          least = std::min(least, q.count());
          most = std::max(most, q.count());
          ASSERT_LT(p.group_offset(rank), p.group_size());
          for (std::int64_t head = q.begin; head < q.end; ++head) {
            const std::int64_t needed = head / p.group_size();
            ASSERT_TRUE(kv.begin <= needed && needed < kv.end) << "query head " << head << " finds its key/value head";
            // The formula of kernels/attention.h, in local indices.
            ASSERT_EQ(kv.begin + (head - q.begin + p.group_offset(rank)) / p.group_size(), needed);
          }
          ASSERT_EQ(kv.begin, q.begin / p.group_size()) << "no more than needed";
          ASSERT_EQ(kv.end - 1, (q.end - 1) / p.group_size()) << "no more than needed";
          ASSERT_TRUE(kv.begin <= owned.begin && owned.begin <= owned.end && owned.end <= kv.end) << "owned is held";
          for (std::int64_t head = kv.begin; head < kv.end; ++head) {
            const auto at = static_cast<std::size_t>(head);
            const bool owns = owned.begin <= head && head < owned.end;
            ASSERT_EQ(owns, holders[at] == 0) << "the lowest holder owns";
            ++holders[at];
            owners[at] += owns;
          }
        }
        ASSERT_EQ(next, heads);
        ASSERT_LE(most - least, 1) << "even";
        ASSERT_GE(least, 1);
        bool any = false;
        for (std::int64_t head = 0; head < kv_heads; ++head) {
          const auto at = static_cast<std::size_t>(head);
          ASSERT_EQ(owners[at], 1) << "key/value head " << head << " is owned once";
          ASSERT_EQ(p.shared(head), holders[at] > 1);
          any = any || holders[at] > 1;
        }
        ASSERT_EQ(p.any_shared(), any);
        ASSERT_DOUBLE_EQ(p.imbalance(), static_cast<double>(most * ranks) / static_cast<double>(heads));
      }
}

TEST(EvenSlice, InUnitsCoversOnceAndOnlyTheLastUnitIsBroken) {
  for (std::int64_t total = 0; total <= 100; ++total)
    for (std::int64_t unit : {1, 7, 8})
      for (std::int64_t parts = 1; parts <= 9; ++parts) {
        std::int64_t next = 0, least = total, most = 0;
        for (std::int64_t i = 0; i < parts; ++i) {
          const Slice slice = even_slice_in_units(total, unit, parts, i);
          ASSERT_EQ(slice.begin, next);
          ASSERT_GE(slice.count(), 0);
          ASSERT_TRUE(slice.end == total || slice.count() % unit == 0);
          next = slice.end;
          least = std::min(least, slice.count());
          most = std::max(most, slice.count());
        }
        ASSERT_EQ(next, total);
        ASSERT_LE(most - least, 2 * unit - 1);  // one unit, and the broken one
        ASSERT_TRUE(unit > 1 || most - least <= 1);
      }
}

}  // namespace
}  // namespace choir::tests
