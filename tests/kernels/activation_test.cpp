// The activations against their formulas, between the flat ends, and gradients against finite differences.
#include "kernels/activation.h"

#include "tests/kernels/compare.h"
#include "tests/kernels/gelu.h"

namespace choir::kernels::tests {
namespace {

const Activation kinds[] = {Activation::gelu, Activation::gelu_erf, Activation::silu_gated};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double function(Activation kind, double x) {
  switch (kind) {
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::silu_gated:
      return x * sigmoid(x);
  }
  return 0;
}

double derivative(Activation kind, double x) {
  switch (kind) {
    case Activation::gelu:
      return gelu_gradient(x);
    case Activation::gelu_erf:
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    case Activation::silu_gated:
      return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
  }
  return 0;
}

struct Case {
  std::int64_t rows, width;
};
const Case cases[] = {{1, 1}, {5, 3}, {1, 17}, {4, 64}, {3, 100}, {1, 1000}, {70, 1000}};

// exp is accurate to 2 ulp of f32 and has an argument that is rounded relative to its size, at most about 12 if the
// result is above the rounding of 1; a few operations follow.
constexpr double roundings = 40;

template <class T>
class ActivationTest : public ::testing::Test {};
TYPED_TEST_SUITE(ActivationTest, ElementTypes);

TYPED_TEST(ActivationTest, ForwardIsItsFormula) {
  using T = TypeParam;
  for (const Activation kind : kinds) {
    for (const auto& [rows, width] : cases) {
      const std::int64_t inputs = inputs_per_output(kind) * width;
      const std::vector<T> x = random_values<T>(rows * inputs, 1, 3);
      std::vector<Result> expected;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < width; ++i) {
          const double input = x[row * inputs + i];
          const double up = kind == Activation::silu_gated ? double(x[row * inputs + width + i]) : 1;
          expected.push_back({function(kind, input) * up, std::abs(input * up)});
        }
      }
      on_every_target([&](Cpu cpu) {
        std::vector<T> y(rows * width);
        activation_forward(cpu, ActivationForward<T>{kind, x.data(), y.data(), rows, width});
        expect_close(y.data(), expected, roundings, "y");
      });
    }
  }
}

TYPED_TEST(ActivationTest, BackwardIsItsFormula) {
  using T = TypeParam;
  for (const Activation kind : kinds) {
    for (const auto& [rows, width] : cases) {
      const std::int64_t inputs = inputs_per_output(kind) * width;
      const std::vector<T> x = random_values<T>(rows * inputs, 1, 3), dy = random_values<T>(rows * width, 2);
      std::vector<Result> expected(rows * inputs);
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < width; ++i) {
          const double input = x[row * inputs + i], slope = dy[row * width + i];
          const bool gated = kind == Activation::silu_gated;
          const double up = gated ? double(x[row * inputs + width + i]) : 1;
          const double dx = slope * up * derivative(kind, input);
          expected[row * inputs + i] = {dx, std::abs(slope * up) * (1 + std::abs(input))};
          if (gated) expected[row * inputs + width + i] = {slope * function(kind, input), std::abs(slope * input)};
        }
      }
      on_every_target([&](Cpu cpu) {
        const bool in_place = inputs == width;
        std::vector<T> dx = in_place ? dy : std::vector<T>(x.size());
        activation_backward(
            cpu, ActivationBackward<T>{kind, in_place ? dx.data() : dy.data(), x.data(), dx.data(), rows, width});
        expect_close(dx.data(), expected, roundings, "dx");
      });
    }
  }
}

TEST(ActivationExtremes, AreZeroOrTheInputAndNaNIsSeen) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {-1e30f, -1e15f, -1000, -20, 0, 20, 1000, 1e15f, 1e30f, nan};
  for (const Activation kind : {Activation::gelu, Activation::gelu_erf}) {
    on_every_target([&](Cpu cpu) {
      std::vector<float> y(x.size()), dx(x.size()), ones(x.size(), 1.0f);
      const auto width = static_cast<std::int64_t>(x.size());
      activation_forward(cpu, ActivationForward<float>{kind, x.data(), y.data(), 1, width});
      activation_backward(cpu, ActivationBackward<float>{kind, ones.data(), x.data(), dx.data(), 1, width});
      for (std::size_t i = 0; i + 1 < x.size(); ++i) {
        EXPECT_NEAR(y[i], std::max(x[i], 0.0f), 1e-7) << x[i];
        EXPECT_NEAR(dx[i], x[i] == 0 ? 0.5 : x[i] > 0, 1e-7) << x[i];
      }
      EXPECT_TRUE(std::isnan(y.back()));
    });
  }
}

TEST(ActivationGradient, AgreesWithFiniteDifferences) {
  for (const Activation kind : kinds) {
    const std::int64_t rows = 2, width = 17;
    std::vector<double> x = random_values<double>(rows * inputs_per_output(kind) * width, 1, 2), y(rows * width);
    const std::vector<double> dy = random_values<double>(rows * width, 2);
    std::vector<double> dx(x.size());
    const auto loss = [&] {
      activation_forward(Cpu{}, ActivationForward<double>{kind, x.data(), y.data(), rows, width});
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
      return sum;
    };
    activation_backward(Cpu{}, ActivationBackward<double>{kind, dy.data(), x.data(), dx.data(), rows, width});
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(dx[i], finite_difference(x[i], loss), finite_difference_bound) << i;
    }
  }
}

}  // namespace
}  // namespace choir::kernels::tests
