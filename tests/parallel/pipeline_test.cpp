// Pipeline schedules: for all stages up to 8 and micro-batches up to 16, a simulation of all stages runs to the end.
#include "framework/parallel/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace choir::tests {
namespace {

using Kind = Action::Kind;

TEST(Pipeline, OneStageIsGradientAccumulation) {
  EXPECT_EQ(one_forward_one_backward(0, 1, 2),
            (std::vector<Action>{{Kind::forward, 0}, {Kind::backward, 0}, {Kind::forward, 1}, {Kind::backward, 1}}));
  EXPECT_EQ(peak_in_flight(one_forward_one_backward(0, 1, 16)), 1);
}

TEST(Pipeline, EveryScheduleIsCompleteOrderedExecutableAndWithinItsMemory) {
  for (int stages = 1; stages <= 8; ++stages)
    for (int micro_batches = 1; micro_batches <= 16; ++micro_batches) {
      SCOPED_TRACE(std::to_string(stages) + " stages, " + std::to_string(micro_batches) + " micro-batches");
      std::vector<std::vector<Action>> schedules;
      for (int stage = 0; stage < stages; ++stage) {
        schedules.push_back(one_forward_one_backward(stage, stages, micro_batches));
        int forwards = 0, backwards = 0;
        for (const Action& action : schedules.back()) {
          ASSERT_EQ(action.micro_batch, (action.kind == Kind::forward ? forwards : backwards)++);
          ASSERT_LE(backwards, forwards) << "a backward before its forward";
        }
        ASSERT_EQ(forwards, micro_batches);
        ASSERT_EQ(backwards, micro_batches);
        ASSERT_EQ(peak_in_flight(schedules.back()), std::min(stages - stage, micro_batches));
      }
      // All stages side by side: an action runs when what it reads has been made. Stuck is a deadlock.
      std::vector<std::size_t> at(static_cast<std::size_t>(stages));
      std::vector<int> forwards(at.size()), backwards(at.size());
      std::size_t done = 0;
      for (bool moved = true; moved;) {
        moved = false;
        for (std::size_t s = 0; s < at.size(); ++s) {
          if (at[s] == schedules[s].size()) continue;
          const auto [kind, m] = schedules[s][at[s]];
          const bool ready =
              kind == Kind::forward ? s == 0 || forwards[s - 1] > m : s + 1 == at.size() || backwards[s + 1] > m;
          if (!ready) continue;
          ++(kind == Kind::forward ? forwards : backwards)[s];
          ++at[s];
          ++done;
          moved = true;
        }
      }
      ASSERT_EQ(done, 2u * static_cast<std::size_t>(stages * micro_batches)) << "deadlock";
    }
}

}  // namespace
}  // namespace choir::tests
