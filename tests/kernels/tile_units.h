// On what the kernels for tiles are tested.
#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cstdint>

#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_matmul.h"
#include "tests/kernels/tile_double.h"

namespace choir::kernels::tests {

/// Calls body() with each instruction set that was compiled and that this processor has.
template <class Body>
void on_every_instruction_set(const Body& body) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    {
      SCOPED_TRACE(hwy::TargetName(target));
      body();
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    if (::testing::Test::HasFatalFailure()) return;
  }
}

/// Calls body(kernels) for the double on each instruction set, and for the tile unit of this processor if it has one.
template <class Body>
void on_every_tile_unit(const Body& body) {
  on_every_instruction_set([&] { body(kernels_on_double()); });
  if (!cpu::has_tiles() || ::testing::Test::HasFatalFailure()) return;
  SCOPED_TRACE("tile instructions");
  body(TileKernels{"instructions", &cpu::tile_matmul<bf16>, &cpu::tile_matmul<float>, &cpu::tile_attention_forward,
                   &cpu::tile_attention_backward});
}

}  // namespace choir::kernels::tests
