// What the kernel tests share: inputs, every instruction set of this processor, and the error model.
//
// A result is computed together with its `magnitude`, the sum of the absolute values of everything that is added. With
// u half a unit in the last place of 1, it may differ from the formula in double by
//   u(T) |result|                        its own rounding to T
//   + roundings * u(Accumulate<T>) * magnitude
// where `roundings` is the number of roundings on the longest path through the formula: about 4 sqrt(n) for a sum of n
// terms (four standard deviations of a sum of random roundings) and a few more for the steps around it.
#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/types.h"

namespace choir::kernels::tests {

using ElementTypes = ::testing::Types<float, bf16, double>;

template <class T>
constexpr double half_ulp() {
  if (std::is_same_v<T, double>) return 0x1p-53;
  return std::is_same_v<T, float> ? 0x1p-24 : 0x1p-8;
}

/// Normal random values of the given deviation, rounded to T.
template <class T>
std::vector<T> random_values(std::int64_t count, unsigned seed, double deviation = 1) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) {
    if constexpr (std::is_same_v<T, double>) {
      value = normal(generator);
    } else {
      value = T(static_cast<float>(normal(generator)));
    }
  }
  return values;
}

struct Result {
  double value = 0, magnitude = 0;

  /// One more term of a sum.
  void add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

template <class T>
void expect_close(const T* actual, const std::vector<Result>& expected, double roundings, const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto [value, magnitude] = expected[i];
    const double bound = half_ulp<T>() * std::abs(value) + roundings * half_ulp<Accumulate<T>>() * magnitude +
                         std::numeric_limits<float>::min();
    ASSERT_NEAR(static_cast<double>(actual[i]), value, bound) << what << " [" << i << "]";
  }
}

/// Runs body() with each instruction set that was compiled and that this processor has.
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

/// Runs body(cpu) with each of them, with 1 and 3 threads.
template <class Body>
void on_every_target(const Body& body) {
  on_every_instruction_set([&] {
    for (const int threads : {1, 3}) {
      SCOPED_TRACE("threads " + std::to_string(threads));
      body(Cpu{.threads = threads});
      if (::testing::Test::HasFatalFailure()) return;
    }
  });
}

/// d loss / d x by central differences. The errors h^2 (truncation) and half_ulp |loss| / h (rounding) are both about
/// 1e-10 times the size of the third derivative and of the loss.
template <class Loss>
double finite_difference(double& x, const Loss& loss) {
  constexpr double h = 1e-5;
  const double at = x;
  x = at + h;
  const double above = loss();
  x = at - h;
  const double below = loss();
  x = at;
  return (above - below) / (2 * h);
}
inline constexpr double finite_difference_bound = 1e-8;

}  // namespace choir::kernels::tests
