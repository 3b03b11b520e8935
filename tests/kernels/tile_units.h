// On what the kernels for tiles are tested.
#pragma once

#include <gtest/gtest.h>

#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_matmul.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/tile_double.h"

namespace choir::kernels::tests {

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
