// On what the kernels for tiles and for pairs are tested.
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
  on_every_instruction_set([&] { body(products_on_double()); });
  if (!cpu::has_tiles() || ::testing::Test::HasFatalFailure()) return;
  SCOPED_TRACE("tile instructions");
  body(TileKernels{"instructions", &cpu::tile_matmul<bf16>, &cpu::tile_matmul<float>});
}

/// The same for attention, on tiles and on pairs.
template <class Body>
void on_every_attention_unit(const Body& body) {
  const auto run = [&](const AttentionKernels& kernels) {
    if (::testing::Test::HasFatalFailure()) return;
    SCOPED_TRACE(kernels.name);
    body(kernels);
  };
  on_every_instruction_set([&] {
    run(attention_on_tile_double());
    run(attention_on_pair_double());
  });
  const auto run_instructions = [&](const char* name, Bf16Unit unit) {
    run({name, unit, &cpu::tile_attention_forward, &cpu::tile_attention_backward});
  };
  if (cpu::has_tiles()) run_instructions("tile instructions", Bf16Unit::tiles);
  if (cpu::has_pairs()) run_instructions("pair instructions", Bf16Unit::pairs);
}

}  // namespace choir::kernels::tests
