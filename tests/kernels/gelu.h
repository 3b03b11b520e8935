// gelu in double precision, by its definition, for whatever computes it: kernels/activation.h, kernels/matmul.h.
#pragma once

#include <cmath>

namespace choir::kernels::tests {

/// x c(x), c the distribution sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): 1 + tanh(u) would cancel in the tail.
inline double gelu_share(double x) { return 1 / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
inline double gelu(double x) { return x * gelu_share(x); }
inline double gelu_gradient(double x) {
  const double c = gelu_share(x);
  return c + x * c * (1 - c) * 2 * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}
inline constexpr double steepest_gelu = 1.13;

}  // namespace choir::kernels::tests
