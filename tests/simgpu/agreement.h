// The comparison of a CUDA kernel with the CPU kernel of the same name, which is tested against mathematics.
#pragma once

#include <bit>

#include "tests/simgpu/device_array.h"

namespace choir::simgpu::tests {

using kernels::Accumulate;
using kernels::bf16;
using kernels::Cpu;
using kernels::tests::half_ulp;
using kernels::tests::random_values;

/// Both results obey the error model of tests/kernels/compare.h, so they differ by at most twice its bound.
/// `magnitude` is, for each element, the sum of the absolute values of everything that is added.
template <class T>
void expect_agreement(const std::vector<T>& of_cuda, const std::vector<T>& of_cpu, const std::vector<double>& magnitude,
                      double roundings, const std::string& what) {
  ASSERT_EQ(of_cuda.size(), of_cpu.size());
  ASSERT_EQ(of_cuda.size(), magnitude.size());
  for (std::size_t i = 0; i < of_cuda.size(); ++i) {
    const double value = of_cpu[i];
    const double bound = 2 * (half_ulp<T>() * std::abs(value) + roundings * half_ulp<Accumulate<T>>() * magnitude[i] +
                              std::numeric_limits<float>::min());
    ASSERT_NEAR(static_cast<double>(of_cuda[i]), value, bound) << what << " [" << i << "]";
  }
}

/// The same bits.
template <class T>
void expect_equal(const std::vector<T>& of_cuda, const std::vector<T>& of_cpu, const std::string& what) {
  using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;
  ASSERT_EQ(of_cuda.size(), of_cpu.size());
  for (std::size_t i = 0; i < of_cuda.size(); ++i) {
    ASSERT_EQ(std::bit_cast<Bits>(of_cuda[i]), std::bit_cast<Bits>(of_cpu[i]))
        << what << " [" << i << "]: " << static_cast<double>(of_cuda[i]) << " and " << static_cast<double>(of_cpu[i]);
  }
}

/// The roundings of a sum of n terms, as four standard deviations, and those of a few steps around it.
inline double roundings_of_sum(std::int64_t n) { return 4 * std::sqrt(static_cast<double>(n)) + 8; }

/// body<T>(offset) in f32 and bf16, for arrays at aligned addresses and for arrays one element behind.
template <class Body>
void for_types_and_offsets(const Body& body) {
  for (const std::int64_t offset : {0, 1}) {
    SCOPED_TRACE("offset " + std::to_string(offset));
    {
      SCOPED_TRACE("f32");
      body.template operator()<float>(offset);
    }
    if (::testing::Test::HasFatalFailure()) return;
    {
      SCOPED_TRACE("bf16");
      body.template operator()<bf16>(offset);
    }
    if (::testing::Test::HasFatalFailure()) return;
  }
}

inline const auto generations = ::testing::Values(80, 90, 100);

}  // namespace choir::simgpu::tests
