// The pipelines that the tests of schedules and messages go through.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "framework/parallel/schedule.h"

namespace choir::tests {

/// Calls check(pipeline) for all kinds, stages 1 to 8, chunks 1 to 3 (V shape: 2), micro-batches 1 to 16, until a check
/// fails fatally.
template <class Check>
void for_each_pipeline(const Check& check) {
  using enum PipelineSchedule;
  for (const PipelineSchedule schedule : {one_forward_one_backward, interleaved, zero_bubble, v_shaped})
    for (int stages = 1; stages <= 8; ++stages)
      for (int chunks = schedule == v_shaped ? 2 : 1; chunks <= (schedule == v_shaped ? 2 : 3); ++chunks)
        for (int micro_batches = 1; micro_batches <= 16; ++micro_batches) {
          SCOPED_TRACE(fmt::format("{}, {} stages, {} chunks, {} micro-batches", name_of(schedule), stages, chunks,
                                   micro_batches));
          check(Pipeline{schedule, stages, chunks, micro_batches});
          if (::testing::Test::HasFatalFailure()) return;
        }
}

}  // namespace choir::tests
