// The adjoint identity <J u, v> = <u, J^T v>: forward alone, differenced along u, against backward.
//
// It needs a few runs of forward at any size. Random u and v give every element of the input and of the output a
// weight: one wrong element among a hundred thousand changes <u, J^T v> by a few thousandths of its size.
//
// Error model. J u is the five-point rule of tests/model/gradients_test.cpp, here with h = 1e-4 and u of deviation 1:
// its truncation, h^4 / 30 = 3e-18 times a fifth derivative, is far below its rounding. The error of an output at the
// end of k successive sums, each of at most n terms, is about u0 sqrt(k n) of the outputs' root mean square, with
// u0 = 2^-53. With the random signs of v these errors add up to u0 sqrt(k n) |y|, of which the rule has
// sqrt(8^2 + 8^2 + 1 + 1) / 12 = 0.95 over h. x + h u is rounded too, which is one more step. Four standard deviations:
//
//   |<J u, v> - <u, J^T v>| <= 4 sqrt(k n + 1) u0 |y| / h
//
// The rounding of backward is not divided by h, and is negligible.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "framework/core/runtime.h"

namespace choir::tests {

class Adjoint : public ::testing::Test {
 protected:
  struct Operand {
    std::string name;
    Tensor value;
  };

  Tensor zeros(const Shape& shape) {
    return filled(shape, [] { return 0.0; });
  }
  Tensor random(const Shape& shape, double deviation = 1) {
    return filled(shape, [&] { return deviation * normal_(generator_); });
  }

  /// Checks the identity for each operand in turn. forward() computes y from the operands; backward(dy), called after
  /// it, returns their gradients, in their order. `terms` is k n.
  template <class Forward, class Backward>
  void expect_adjoint(const std::vector<Operand>& operands, double terms, const Forward& forward,
                      const Backward& backward) {
    constexpr double h = 1e-4;
    const Tensor y = forward();
    const Tensor v = random(y.shape());
    const std::vector<Tensor> gradients = backward(v);
    ASSERT_EQ(gradients.size(), operands.size());
    const double bound = 4 * std::sqrt(terms + 1) * 0x1p-53 * std::sqrt(product(y, y)) / h;
    double steepest = 0, worst = 0;
    for (std::size_t i = 0; i < operands.size(); ++i) {
      const auto& [name, x] = operands[i];
      ASSERT_EQ(gradients[i].count(), x.count()) << name;
      steepest = std::max(steepest, std::sqrt(product(gradients[i], gradients[i])));
      const Tensor u = random({x.rows(), x.width()}), start = zeros({x.rows(), x.width()});
      for (std::int64_t e = 0; e < x.count(); ++e) element(start, e) = element(x, e);
      const auto moved = [&](double step) {
        for (std::int64_t e = 0; e < x.count(); ++e) element(x, e) = element(start, e) + step * element(u, e);
        return forward();
      };
      const auto difference = [&](double step) {  // element by element: the sum rounds like the result, not like y
        const Tensor above = moved(step), below = moved(-step);
        double sum = 0;
        for (std::int64_t e = 0; e < v.count(); ++e) sum += element(v, e) * (element(above, e) - element(below, e));
        return sum;
      };
      const double forward_slope = (8 * difference(h) - difference(2 * h)) / (12 * h);
      moved(0);
      const double backward_slope = product(u, gradients[i]);
      EXPECT_NEAR(backward_slope, forward_slope, bound) << "gradient of " << name;
      worst = std::max(worst, std::abs(backward_slope - forward_slope) / bound);
    }
    EXPECT_LT(bound, 1e-6 * steepest) << "the gradients are too small for the bound to say anything";
    RecordProperty("largest error / bound", std::to_string(worst));
  }

  Device device{3};
  Runtime runtime{.device = device, .compute_type = DType::f64};

 private:
  template <class Value>
  Tensor filled(const Shape& shape, const Value& value) {
    Tensor x = runtime.empty(shape, DType::f64);
    std::generate_n(x.data<double>(), x.count(), value);
    return x;
  }
  static double& element(const Tensor& x, std::int64_t i) {
    return x.data<double>()[i / x.width() * x.row_stride() + i % x.width()];
  }
  static double product(const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (std::int64_t i = 0; i < a.count(); ++i) sum += element(a, i) * element(b, i);
    return sum;
  }

  std::mt19937_64 generator_{7};
  std::normal_distribution<double> normal_;
};

}  // namespace choir::tests
