// The residual branch on the GPU against the CPU. The random words are the same, so both drop the same elements.
#include "kernels/residual.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  bool x, bias;
  double p;
  kernels::RowMap rows_of_batch;
};
constexpr kernels::RowMap from(std::int64_t first_row) { return {.first_row = first_row}; }
constexpr kernels::RowMap two_runs{
    .first_sample = 6, .sequences = 3, .length = 20, .runs = {{2, 5}, {13, 18}}, .first_row = 2};
const Case cases[] = {
    {1, 1, true, true, 0, {}},           {5, 3, true, false, 0.5, from(1)},
    {1, 17, false, true, 0.1, from(3)},  {4, 64, true, true, 0, {}},
    {3, 100, true, true, 0.9, from(7)},  {2, 1000, false, false, 0.25, from(1)},
    {30, 200, true, true, 0.1, from(5)}, {7, 104, true, true, 0.1, from(std::int64_t{1} << 34)},
    {21, 9, true, true, 0.5, two_runs},  {21, 24, true, true, 0.5, two_runs},
};

struct ResidualCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::vector<kernels::StepScalars> scalars = {{.step = (std::uint64_t{1} << 33) + 77}};
  const DeviceArray<kernels::StepScalars> device_scalars(scalars);
  const std::int64_t count = c.rows * c.width;
  const std::vector<T> x = random_values<T>(count, 1), delta = random_values<T>(count, 2);
  const std::vector<float> bias = random_values<float>(c.width, 3);
  std::vector<T> y(x.size()), ddelta(x.size());
  kernels::ResidualForward<T> forward{
      .x = c.x ? x.data() : nullptr,
      .delta = delta.data(),
      .bias = c.bias ? bias.data() : nullptr,
      .y = y.data(),
      .rows = c.rows,
      .width = c.width,
      .dropout = {
          .p = c.p, .key = 0x123456789abcdef, .scalars = c.p == 0 ? nullptr : scalars.data(), .rows = c.rows_of_batch}};
  kernels::ResidualBackward<T> backward{
      .dy = delta.data(), .ddelta = ddelta.data(), .rows = c.rows, .width = c.width, .dropout = forward.dropout};
  residual_forward(Cpu{}, forward);
  residual_backward(Cpu{}, backward);

  const DeviceArray<T> device_x(x, offset), device_delta(delta, offset), device_y(count, offset),
      device_ddelta(count, offset);
  const DeviceArray<float> device_bias(bias);
  if (c.x) forward.x = device_x.data();
  forward.delta = device_delta.data();
  if (c.bias) forward.bias = device_bias.data();
  forward.y = device_y.data();
  if (c.p != 0) forward.dropout.scalars = device_scalars.data();
  backward.dy = device_delta.data();
  backward.ddelta = device_ddelta.data();
  backward.dropout = forward.dropout;
  residual_forward(cuda, forward);
  residual_backward(cuda, backward);

  std::vector<double> magnitude;
  for (std::int64_t i = 0; i < count; ++i) {
    const double branch = std::abs(delta[i]) + (c.bias ? std::abs(bias[i % c.width]) : 0);
    magnitude.push_back(branch / (1 - c.p) + (c.x ? std::abs(x[i]) : 0));
  }
  expect_agreement(device_y.host(), y, magnitude, 3, "y");
  expect_equal(device_ddelta.host(), ddelta, "ddelta");

  const std::vector<T> separate = device_y.host();
  forward.y = c.x ? device_x.data() : device_delta.data();  // in place
  residual_forward(cuda, forward);
  expect_equal((c.x ? device_x : device_delta).host(), separate, "y in place");
}

TEST_P(ResidualCuda, ForwardAndBackwardAgreeWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, ResidualCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
