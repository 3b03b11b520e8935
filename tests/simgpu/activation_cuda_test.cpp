// The nonlinearities on the GPU against the CPU.
//
// The bound: a gate c(x) has the relative error of exp at its argument, at most u (|argument| + 3) since the argument
// is rounded, plus that of a few steps; |argument| is 2 |u(x)| for gelu, x^2 / 2 for gelu_erf, |x| for silu.
#include "kernels/activation.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Activation;

struct Case {
  Activation kind;
  std::int64_t rows, width;
};
const Case cases[] = {{Activation::gelu, 1, 1},        {Activation::gelu, 7, 43},       {Activation::gelu, 9, 256},
                      {Activation::gelu_erf, 1, 3},    {Activation::gelu_erf, 5, 61},   {Activation::gelu_erf, 4, 128},
                      {Activation::silu_gated, 1, 1},  {Activation::silu_gated, 5, 43}, {Activation::silu_gated, 3, 8},
                      {Activation::silu_gated, 9, 256}};

struct ActivationCuda : CudaTest {};

constexpr double argument_limit = 100;  // beyond it a gate is 0 or 1 to the last bit, or below the least normal number

double argument_of_exp(Activation kind, double x) {
  x = std::abs(x);
  const double argument = kind == Activation::gelu       ? 1.6 * x + 0.0714 * x * x * x
                          : kind == Activation::gelu_erf ? x * x / 2
                                                         : x;
  return std::min(argument, argument_limit);
}

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::int64_t inputs = inputs_per_output(c.kind);
  std::vector<T> x = random_values<T>(c.rows * c.width * inputs, 1, 3), y(c.rows * c.width), dx(x.size());
  const float far[] = {0.0f, 40.0f, -40.0f, 1e4f, -1e4f, 9.0f, -9.0f};
  for (std::size_t i = 0; i + 20 < x.size() && i / 20 < std::size(far); i += 20) x[i] = T(far[i / 20]);
  const std::vector<T> dy = random_values<T>(c.rows * c.width, 2);
  const DeviceArray<T> device_x(x, offset), device_dy(dy, offset), device_y(c.rows * c.width, offset),
      device_dx(c.rows * c.width * inputs, offset);
  activation_forward(Cpu{}, kernels::ActivationForward<T>{c.kind, x.data(), y.data(), c.rows, c.width});
  activation_forward(cuda, kernels::ActivationForward<T>{c.kind, device_x.data(), device_y.data(), c.rows, c.width});
  activation_backward(Cpu{}, kernels::ActivationBackward<T>{c.kind, dy.data(), x.data(), dx.data(), c.rows, c.width});
  activation_backward(cuda, kernels::ActivationBackward<T>{c.kind, device_dy.data(), device_x.data(), device_dx.data(),
                                                           c.rows, c.width});

  // The magnitudes carry the rounding counts, which depend on x.
  std::vector<double> of_y, of_dx(x.size());
  for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
    const std::int64_t at = inputs == 2 ? i / c.width * 2 * c.width + i % c.width : i;
    const double input = x[at], slope = std::abs(dy[i]), roundings = argument_of_exp(c.kind, input) + 12;
    // Below zero a gate is at most exp(-argument); the error of a gate near 1 is relative to 1.
    const double gate = input < 0 ? 2 * std::exp(-argument_of_exp(c.kind, input)) : 1;
    const double steepness =
        std::min(std::abs(input), 30.0) * (c.kind == Activation::gelu ? 1.6 + 0.22 * input * input : 1);
    const double up = inputs == 2 ? std::abs(x[at + c.width]) : 1;
    const double bell = std::exp(-argument_of_exp(c.kind, input));  // at least c', except for its factor
    of_y.push_back(roundings * std::abs(input) * gate * up);
    of_dx[at] = roundings * slope * up * (gate + steepness * bell * (c.kind == Activation::gelu_erf ? 0.4 : 1));
    if (inputs == 2) of_dx[at + c.width] = roundings * slope * std::abs(input) * gate;
  }
  expect_agreement(device_y.host(), y, of_y, 1, "y");
  expect_agreement(device_dx.host(), dx, of_dx, 1, "dx");
  if (inputs == 1) {
    activation_backward(cuda, kernels::ActivationBackward<T>{c.kind, device_dy.data(), device_x.data(),
                                                             device_dy.data(), c.rows, c.width});
    expect_equal(device_dy.host(), device_dx.host(), "dx in place of dy");
  }
}

TEST_P(ActivationCuda, ForwardAndBackwardAgreeWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("kind " + std::to_string(static_cast<int>(c.kind)) + ", width " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(ActivationCuda, ForwardPassesNanOn) {
  for (const Activation kind : {Activation::gelu, Activation::gelu_erf, Activation::silu_gated}) {
    const DeviceArray<float> x(std::vector<float>(16, std::numeric_limits<float>::quiet_NaN())), y(8);
    activation_forward(cuda(), kernels::ActivationForward<float>{kind, x.data(), y.data(), 1, 8});
    for (const float value : y.host()) EXPECT_TRUE(std::isnan(value));
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, ActivationCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
