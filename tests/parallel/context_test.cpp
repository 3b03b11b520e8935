// Which positions a context rank holds, which steps a ring has, and which kind sends the fewest bytes.
#include "framework/parallel/context.h"

#include <gtest/gtest.h>

#include <set>

namespace choir::tests {
namespace {

TEST(ContextRows, EveryPositionIsHeldOnceAndTheCausalWorkIsEven) {
  for (const std::int64_t ranks : {1, 2, 3, 4, 8})
    for (const std::int64_t length : {8, 9, 11, 15, 16, 17, 24, 64, 129}) {
      std::vector<int> held(static_cast<std::size_t>(length));
      std::int64_t least = length, most = 0;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const Rows rows = context_rows(whole_rows(3, length, 5), ranks, rank);
        EXPECT_EQ(rows.first_sample, 5);
        EXPECT_EQ(rows.sequences, 3);
        EXPECT_FALSE(rows.runs[0].empty());
        std::int64_t pairs = 0;
        for (const kernels::Run& run : rows.runs)
          for (std::int64_t position = run.begin; position < run.end; ++position, pairs += position)
            ++held[static_cast<std::size_t>(position)];
        least = std::min(least, rows.positions());
        most = std::max(most, rows.positions());
        if (length % (2 * ranks) != 0) continue;
        EXPECT_EQ(pairs, length * (length + 1) / 2 / ranks);
      }
      EXPECT_LE(most - least, 1) << ranks << " ranks, " << length << " positions";
      EXPECT_EQ(held, std::vector<int>(static_cast<std::size_t>(length), 1));
    }
  EXPECT_TRUE(context_rows(whole_rows(1, 7), 1, 0).map().in_order());
}

AttentionSpec spec(std::int64_t heads, std::int64_t kv_heads, std::int64_t window = 0) {
  return {
      .heads = {heads, kv_heads, 1}, .tensor_rank = 0, .head_width = 16, .band = kernels::causal_band(64, 64, window)};
}

TEST(RingSteps, LeaveOutRanksThatNoQuerySees) {
  EXPECT_EQ(ring_steps(spec(4, 4), 64, 1), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(ring_steps(spec(4, 4), 64, 4), (std::vector<std::int64_t>{0, 1, 2, 3}));
  // Slices of 4 positions: a window of 5 reaches the slice before, which the rank before or behind holds.
  EXPECT_EQ(ring_steps(spec(4, 4, 5), 64, 8), (std::vector<std::int64_t>{0, 1, 7}));
  EXPECT_EQ(ring_steps(spec(4, 4, 1), 64, 8), (std::vector<std::int64_t>{0}));
  // Every block of a full band has work.
  AttentionSpec full = spec(4, 4);
  full.band = kernels::full_band();
  EXPECT_EQ(ring_steps(full, 64, 4), (std::vector<std::int64_t>{0, 1, 2, 3}));
  for (std::int64_t rank = 0; rank < 4; ++rank)
    for (const ContextWork::Step& step : context_work(full, ContextKind::ring, 64, 4, rank).steps)
      EXPECT_EQ(step, (ContextWork::Step{.blocks = 4, .pairs = 16 * 16}));
  // A window on both sides reaches the slices before and behind.
  AttentionSpec near = spec(4, 4);
  near.band = kernels::window_band(5);
  EXPECT_EQ(ring_steps(near, 64, 8), (std::vector<std::int64_t>{0, 1, 7}));
}

TEST(ContextKind, IsTheOneWithTheFewestBytes) {
  // Forward and backward, f32, of one sequence of 64 positions on 4 ranks: 16 each.
  const ContextBytes many = context_bytes(spec(8, 8), 64, 4, DType::f32);
  EXPECT_EQ(many.ring, 3 * 16 * (2 * 8 * 16) * 3 * 4.0) << "keys and values twice, their gradients once";
  EXPECT_EQ(many.gather, many.ring);
  EXPECT_EQ(many.heads, 16 * (3 / 4.0) * ((4 + 5) * 8 * 16) * 4)
      << "q, k, v and out; out again, and their gradients; three of four shares leave a rank";
  const auto kind = [](const AttentionSpec& s, std::int64_t length, std::int64_t ranks) {
    return context_kind(ContextKind::automatic, s, length, ranks, DType::f32);
  };
  EXPECT_EQ(kind(spec(8, 8), 64, 4), ContextKind::heads);
  EXPECT_EQ(kind(spec(16, 1), 64, 4), ContextKind::ring) << "few keys and values, many queries";
  EXPECT_EQ(kind(spec(3, 3), 64, 4), ContextKind::ring) << "fewer heads than ranks";
  EXPECT_EQ(kind(spec(8, 8, 5), 64, 8), ContextKind::heads);
  EXPECT_EQ(kind(spec(8, 8, 1), 64, 8), ContextKind::ring) << "no other rank is visited";
  EXPECT_EQ(context_kind(ContextKind::gather, spec(8, 8), 64, 4, DType::f32), ContextKind::gather);
}

}  // namespace
}  // namespace choir::tests
