// Schedules: for all kinds, stages up to 8, chunks up to 3 and micro-batches up to 16, a simulation of all stages runs
// to the end within the memory limit, in the time that the papers give.
#include "framework/parallel/schedule.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "tests/parallel/pipelines.h"

namespace choir::tests {
namespace {

using Kind = Action::Kind;

std::vector<Action> one_forward_one_backward(int stage, int stages, int micro_batches) {
  const int ahead = std::min(stages - stage - 1, micro_batches);
  std::vector<Action> schedule;
  int forward = 0, backward = 0;
  while (forward < ahead) schedule.push_back({Kind::forward, forward++});
  while (forward < micro_batches) {
    schedule.push_back({Kind::forward, forward++});
    schedule.push_back({Kind::backward, backward++});
  }
  while (backward < micro_batches) schedule.push_back({Kind::backward, backward++});
  return schedule;
}

double makespan(const Pipeline& pipeline) { return timeline(pipeline, make_schedules(pipeline)).makespan(); }

/// The actions of all stages that can run if each stage runs its actions in order.
std::size_t executable_actions(const Pipeline& p, const std::vector<std::vector<Action>>& schedules) {
  std::set<std::tuple<Kind, int, int>> done;  // kind, piece, micro-batch
  std::vector<std::size_t> at(schedules.size());
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t s = 0; s < at.size(); ++s) {
      if (at[s] == schedules[s].size()) continue;
      const auto [kind, m, chunk] = schedules[s][at[s]];
      const int piece = p.piece(static_cast<int>(s), chunk);
      const auto has = [&, m = m](Kind of, int made_by) { return done.contains({of, made_by, m}); };
      const bool ready = kind == Kind::forward ? piece == 0 || has(Kind::forward, piece - 1)
                         : kind == Kind::backward
                             ? has(Kind::forward, piece) && (piece + 1 == p.pieces() || has(Kind::backward, piece + 1))
                             : has(Kind::backward, piece);
      if (!ready) continue;
      done.insert({kind, piece, m});
      ++at[s];
      moved = true;
    }
  }
  return done.size();
}

TEST(PipelineSchedule, NamesAreThoseOfTheConfiguration) {
  EXPECT_EQ(value_named<PipelineSchedule>("1f1b"), PipelineSchedule::one_forward_one_backward);
  EXPECT_EQ(value_named<PipelineSchedule>("interleaved"), PipelineSchedule::interleaved);
  EXPECT_EQ(value_named<PipelineSchedule>("zero_bubble"), PipelineSchedule::zero_bubble);
  EXPECT_EQ(value_named<PipelineSchedule>("v"), PipelineSchedule::v_shaped);
}

TEST(PipelineSchedule, EachPieceLiesOnOneStage) {
  for_each_pipeline([](const Pipeline& p) {
    std::set<int> pieces;
    for (int stage = 0; stage < p.stages; ++stage)
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        const int piece = p.piece(stage, chunk);
        ASSERT_EQ(p.stage_of(piece), stage);
        ASSERT_EQ(p.chunk_of(piece), chunk);
        pieces.insert(piece);
      }
    ASSERT_EQ(static_cast<int>(pieces.size()), p.pieces());
    ASSERT_EQ(*pieces.rbegin() + 1, p.pieces());
  });
  const Pipeline v{.schedule = PipelineSchedule::v_shaped, .stages = 4, .chunks = 2};
  EXPECT_EQ(v.stage_of(0), 0);
  EXPECT_EQ(v.stage_of(3), 3);
  EXPECT_EQ(v.stage_of(4), 3) << "the turning point";
  EXPECT_EQ(v.stage_of(7), 0) << "the first stage holds both ends";
}

TEST(PipelineSchedule, OneStageIsGradientAccumulation) {
  const auto schedules = make_schedules({.micro_batches = 2});
  ASSERT_EQ(schedules.size(), 1u);
  EXPECT_EQ(schedules[0],
            (std::vector<Action>{{Kind::forward, 0}, {Kind::backward, 0}, {Kind::forward, 1}, {Kind::backward, 1}}));
  EXPECT_EQ(peak_in_flight(make_schedules({.micro_batches = 16})[0]), 1);
}

TEST(PipelineSchedule, OneChunkIsTheFormulaOfOneForwardOneBackward) {
  for (const PipelineSchedule schedule : {PipelineSchedule::one_forward_one_backward, PipelineSchedule::interleaved})
    for (int stages = 1; stages <= 8; ++stages)
      for (int micro_batches = 1; micro_batches <= 16; ++micro_batches) {
        const auto schedules = make_schedules({schedule, stages, 1, micro_batches});
        for (int stage = 0; stage < stages; ++stage) {
          const std::vector<Action>& here = schedules[static_cast<std::size_t>(stage)];
          ASSERT_EQ(here, one_forward_one_backward(stage, stages, micro_batches))
              << stage << " of " << stages << " stages, " << micro_batches << " micro-batches";
          ASSERT_EQ(peak_in_flight(here), std::min(stages - stage, micro_batches));
        }
      }
}

TEST(PipelineSchedule, EachIsCompleteOrderedExecutableAndWithinItsMemory) {
  for_each_pipeline([](const Pipeline& p) {
    const auto schedules = make_schedules(p);
    ASSERT_EQ(static_cast<int>(schedules.size()), p.stages);
    std::size_t actions = 0;
    for (int stage = 0; stage < p.stages; ++stage) {
      const std::vector<Action>& schedule = schedules[static_cast<std::size_t>(stage)];
      actions += schedule.size();
      std::vector<std::array<int, 3>> next(static_cast<std::size_t>(p.chunks));
      for (const auto& [kind, m, chunk] : schedule) {
        ASSERT_LT(chunk, p.chunks);
        auto& [forwards, backwards, weights] = next[static_cast<std::size_t>(chunk)];
        // Each kind in ascending order: gradients are added in the same order by every schedule.
        ASSERT_EQ(m, kind == Kind::forward ? forwards++ : kind == Kind::backward ? backwards++ : weights++);
        ASSERT_LE(backwards, forwards) << "a backward before its forward";
        ASSERT_LE(weights, backwards) << "weight gradients before their backward";
      }
      const int split = p.splits_backward() ? p.micro_batches : 0;
      for (const auto& counts : next) ASSERT_EQ(counts, (std::array{p.micro_batches, p.micro_batches, split}));
      ASSERT_LE(peak_in_flight(schedule), p.limit(stage));
    }
    ASSERT_EQ(executable_actions(p, schedules), actions) << "a stage waits for ever";
  });
}

TEST(PipelineSchedule, MemoryDoesNotGrowWithTheMicroBatches) {
  using enum PipelineSchedule;
  const auto peaks = [](PipelineSchedule schedule, int chunks, int micro_batches) {
    std::vector<int> all;
    for (const auto& here : make_schedules({schedule, 4, chunks, micro_batches})) all.push_back(peak_in_flight(here));
    return all;
  };
  for (const int micro_batches : {16, 64}) {
    EXPECT_EQ(peaks(one_forward_one_backward, 1, micro_batches), (std::vector{4, 3, 2, 1}));
    EXPECT_EQ(peaks(interleaved, 2, micro_batches), (std::vector{11, 9, 7, 5}));
    EXPECT_EQ(peaks(zero_bubble, 1, micro_batches), (std::vector{4, 4, 4, 4}));
    EXPECT_EQ(peaks(v_shaped, 2, micro_batches), (std::vector{8, 8, 8, 8})) << "halves of what a 1F1B stage holds";
  }
}

TEST(PipelineSchedule, MakespansAreThoseOfTheTheory) {
  using enum PipelineSchedule;
  for (int s = 1; s <= 8; ++s)
    for (int m = 1; m <= 16; ++m) {
      SCOPED_TRACE(fmt::format("{} stages, {} micro-batches", s, m));
      // Forward 1, backward 1, weights 1. 1F1B: everything waits for the first micro-batch to go there and back.
      ASSERT_EQ(makespan({one_forward_one_backward, s, 1, m}), 3 * (m + s - 1));
      for (int chunks = 2; chunks <= 3; ++chunks) {
        // A chunk is 1 / chunks of a stage, and so is the bubble. Less than a round cannot fill the stages: the way of
        // the first micro-batch through all pieces decides.
        const int busy = 3 * m * chunks, way = 3 * (m + s * chunks - 1);
        ASSERT_EQ(makespan({interleaved, s, chunks, m}), m >= s ? busy + 3 * (s - 1) : way);
      }
      // ZB-H1: the bubble is (s - 1) (forward + backward - weights). With less than s micro-batches the first goes to
      // the last stage, which alternates; the last one comes back, and its weight gradient ends the step.
      const double whole = makespan({one_forward_one_backward, s, 1, m}), zero = makespan({zero_bubble, s, 1, m});
      ASSERT_EQ(zero, m >= s ? 3 * m + s - 1 : (s - 1) + 2 * m + (s - 1) + 1);
      // V shape: its unit is half of a stage. The last stage begins when the first output comes to it.
      const double v = makespan({v_shaped, s, 2, m}), bound = 6 * m + s - 1;
      ASSERT_GE(v, bound);
      if (m == s) {
        ASSERT_EQ(v, bound);
      }
      if (s > 1) {
        ASSERT_LT(zero, whole);
        ASSERT_LT(v, 2 * whole);
      }
    }
  EXPECT_EQ(makespan({v_shaped, 4, 2, 16}), 99) << "the bound";
}

TEST(PipelineSchedule, TheTimelineFollowsTheTimesOfThePieces) {
  // Two stages, one micro-batch: forward 2 and 3, backward 1 + 4 and 5 + 6.
  const Pipeline p{.stages = 2, .micro_batches = 1};
  const Timeline t = timeline(p, make_schedules(p), {.forward = {2, 3}, .backward = {1, 5}, .weights = {4, 6}});
  EXPECT_EQ(t.spans[0][0].end, 2);
  EXPECT_EQ(t.spans[1][0].begin, 2);
  EXPECT_EQ(t.spans[1][1].begin, 5);
  EXPECT_EQ(t.spans[0][1].begin, 16);
  EXPECT_EQ(t.makespan(), 21);
  EXPECT_DOUBLE_EQ(t.bubble(), 1 - 21 / 42.0);

  // Split: the first stage's backward does not wait for the weight gradients of the last.
  const Pipeline split{.schedule = PipelineSchedule::zero_bubble, .stages = 2, .micro_batches = 1};
  const Timeline s = timeline(split, make_schedules(split), {.forward = {2, 3}, .backward = {1, 5}, .weights = {4, 6}});
  EXPECT_EQ(s.spans[0][1].begin, 10);
  EXPECT_EQ(s.makespan(), 16);
}

TEST(PipelineSchedule, LargePipelinesHaveAScheduleToo) {
  for (const Pipeline& p :
       {Pipeline{PipelineSchedule::interleaved, 64, 4, 512}, Pipeline{PipelineSchedule::zero_bubble, 64, 4, 512},
        Pipeline{PipelineSchedule::v_shaped, 64, 2, 512}}) {
    const Timeline t = timeline(p, make_schedules(p));
    EXPECT_LT(t.bubble(), 0.04) << name_of(p.schedule);
  }
}

}  // namespace
}  // namespace choir::tests
