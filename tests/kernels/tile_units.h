// On what the kernels for tiles and vectors are tested.
#pragma once

#include <gtest/gtest.h>

#include <type_traits>

#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/vector_matmul.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/tile_double.h"

namespace choir::kernels::tests {

/// Calls body(kernel) for the product on the doubles, for each instruction set, and on the units that this processor
/// has.
template <class In, class Out, class Body>
void on_every_product_unit(const Body& body) {
  const auto run = [&](const ProductKernel<In, Out>& kernel) {
    if (kernel.multiply == nullptr || ::testing::Test::HasFatalFailure()) return;
    SCOPED_TRACE(kernel.unit);
    body(kernel);
  };
  on_every_instruction_set([&] {
    run(product_of<In, Out>(products_on_tile_double()));
    run(product_of<In, Out>(products_on_vector_double()));
  });
  if constexpr (std::is_same_v<In, bf16>) {
    if (cpu::has_tiles()) run({"tile instructions", &cpu::tile_matmul<Out>, &cpu::tile_matmul_workspace_bytes<Out>});
  }
  if (cpu::has_pairs())
    run({"vector instructions", &cpu::vector_matmul<In, Out>, &cpu::vector_matmul_workspace_bytes<In, Out>});
}

/// The same for attention on operands of T.
template <class T, class Body>
void on_every_attention_unit(const Body& body) {
  const auto run = [&](const AttentionKernels<T>& kernels) {
    if (kernels.forward == nullptr || ::testing::Test::HasFatalFailure()) return;
    SCOPED_TRACE(kernels.name);
    body(kernels);
  };
  const auto run_instructions = [&](const char* name, CpuUnit unit) {
    run({name, unit, &cpu::tile_attention_forward<T>, &cpu::tile_attention_backward<T>});
  };
  on_every_instruction_set([&] {
    if constexpr (std::is_same_v<T, bf16>) run(attention_on_tile_double());
    run(attention_on_vector_double<T>());
  });
  if (std::is_same_v<T, bf16> && cpu::has_tiles()) run_instructions("tile instructions", CpuUnit::tiles);
  if (cpu::has_pairs()) run_instructions("vector instructions", CpuUnit::vectors);
}

}  // namespace choir::kernels::tests
