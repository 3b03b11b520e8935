// The loop that measures the limit of the processor counts what it does.
#include "kernels/register_rate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/matmul.h"

namespace choir::kernels::tests {
namespace {

TEST(RegisterRate, CountsTheMultiplyAddsOfAllThreads) {
  const double one = multiply_in_registers(Cpu{.threads = 1}, 1000);
  EXPECT_EQ(std::fmod(one, 2.0 * 12 * 1000), 0);
  EXPECT_GE(one, 2.0 * 12 * 1000);
  EXPECT_EQ(multiply_in_registers(Cpu{.threads = 1}, 3000), 3 * one);
  EXPECT_EQ(multiply_in_registers(Cpu{.threads = 2}, 1000), 2 * one);
  if (cpu::has_tiles()) {
    EXPECT_EQ(multiply_in_registers(Cpu{.threads = 2, .unit = CpuUnit::tiles}, 1000),
              2 * 2.0 * 4 * 16 * 16 * 32 * 1000);
  }
  if (cpu::has_pairs()) {
    EXPECT_EQ(multiply_in_registers(Cpu{.threads = 2, .unit = CpuUnit::vectors}, 1000), 2 * 2.0 * 16 * 32 * 1000);
  }
}

}  // namespace
}  // namespace choir::kernels::tests
