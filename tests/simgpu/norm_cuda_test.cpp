// Layer norm and RMS norm on the GPU against the CPU.
#include "kernels/norm.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::NormBackward;
using kernels::NormForward;

struct Case {
  std::int64_t rows, width;
  bool rms, bias, residual;
};
// In aligned rows of up to 768 columns a warp has a row: one that is full, one with lanes to spare, and one with packs
// to spare. The last is too wide for sums in shared memory.
const Case cases[] = {{1, 1, false, true, false},    {5, 3, false, true, true},     {4, 17, true, false, false},
                      {3, 64, false, false, true},   {7, 100, false, true, true},   {2, 1000, true, true, true},
                      {70, 96, false, true, false},  {3, 6024, false, true, false}, {37, 256, false, true, true},
                      {150, 768, false, true, true}, {20, 1024, true, false, true}};

struct NormCuda : CudaTest {};

template <class T>
void forward_agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  std::vector<T> x = random_values<T>(c.rows * c.width, 1), y(x.size());
  for (T& value : x) value = T(static_cast<float>(value) + 0.5f);  // a mean for layer norm to remove
  const std::vector<float> weight = random_values<float>(c.width, 4), bias = random_values<float>(c.width, 5);
  std::vector<float> mean(c.rows), rstd(c.rows);
  NormForward<T> args{.x = x.data(),
                      .weight = weight.data(),
                      .bias = c.bias ? bias.data() : nullptr,
                      .y = y.data(),
                      .mean = c.rms ? nullptr : mean.data(),
                      .rstd = rstd.data(),
                      .rows = c.rows,
                      .width = c.width};
  norm_forward(Cpu{}, args);

  const DeviceArray<T> device_x(x, offset), device_y(c.rows * c.width, offset);
  const DeviceArray<float> device_weight(weight), device_bias(bias), device_mean(mean), device_rstd(c.rows);
  args.x = device_x.data();
  args.weight = device_weight.data();
  if (c.bias) args.bias = device_bias.data();
  args.y = device_y.data();
  if (!c.rms) args.mean = device_mean.data();
  args.rstd = device_rstd.data();
  norm_forward(cuda, args);

  std::vector<double> of_y, of_mean, of_rstd;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    double sum = 0;
    for (std::int64_t i = 0; i < c.width; ++i) {
      const double shift = c.bias ? std::abs(bias[i]) : 0;
      sum += std::abs(x[row * c.width + i]);
      of_y.push_back((std::abs(x[row * c.width + i]) + std::abs(mean[row])) * rstd[row] * std::abs(weight[i]) + shift);
    }
    of_mean.push_back(sum / static_cast<double>(c.width));
    of_rstd.push_back(rstd[row]);
  }
  // A row of one element is its own mean; its deviation is rounding only, which rstd = 1 / sqrt(epsilon) enlarges.
  const double roundings = roundings_of_sum(c.width);
  expect_agreement(device_mean.host(), mean, of_mean, roundings, "mean");
  expect_agreement(device_rstd.host(), rstd, of_rstd, roundings, "rstd");
  expect_agreement(device_y.host(), y, of_y, roundings, "y");
}

TEST_P(NormCuda, ForwardAgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { forward_agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

/// The sum and its norm in one kernel are those of two, to the bit.
template <class T>
void with_residual_is_the_same(kernels::Cuda cuda, const Case& c, double p, std::int64_t offset) {
  const std::int64_t count = c.rows * c.width;
  const DeviceArray<T> x(random_values<T>(count, 1), offset), delta(random_values<T>(count, 2), offset);
  const DeviceArray<float> weight(random_values<float>(c.width, 4)), bias(random_values<float>(c.width, 5));
  const DeviceArray<kernels::StepScalars> scalars(std::vector<kernels::StepScalars>{{.step = 77}});
  const auto outcome = [&](bool together) {
    const DeviceArray<T> sum(count, offset), y(count, offset);
    const DeviceArray<float> mean(c.rows), rstd(c.rows);
    const kernels::ResidualForward<T> residual{
        .x = x.data(),
        .delta = delta.data(),
        .bias = c.bias ? bias.data() : nullptr,
        .y = sum.data(),
        .rows = c.rows,
        .width = c.width,
        .dropout = {.p = p, .key = 0x123456789abcdef, .scalars = scalars.data(), .rows = {.first_row = 5}}};
    const NormForward<T> norm{.x = sum.data(),
                              .weight = weight.data(),
                              .bias = c.bias ? bias.data() : nullptr,
                              .y = y.data(),
                              .mean = c.rms ? nullptr : mean.data(),
                              .rstd = rstd.data(),
                              .rows = c.rows,
                              .width = c.width};
    if (together) {
      residual_norm_forward(cuda, residual, norm);
    } else {
      residual_forward(cuda, residual);
      norm_forward(cuda, norm);
    }
    return std::tuple{sum.host(), y.host(), c.rms ? std::vector<float>{} : mean.host(), rstd.host()};
  };
  const auto [sum, y, mean, rstd] = outcome(true);
  const auto [separate_sum, separate_y, separate_mean, separate_rstd] = outcome(false);
  expect_equal(sum, separate_sum, "sum");
  expect_equal(y, separate_y, "y");
  expect_equal(mean, separate_mean, "mean");
  expect_equal(rstd, separate_rstd, "rstd");
}

TEST_P(NormCuda, WithTheResidualBeforeItIsTheSame) {
  for (const Case& c : cases) {
    if (c.width > 1000) continue;
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for (const double p : {0.0, 0.3})
      for_types_and_offsets([&]<class T>(std::int64_t offset) { with_residual_is_the_same<T>(cuda(), c, p, offset); });
    if (HasFatalFailure()) return;
  }
}

template <class T>
void backward_agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::vector<T> x = random_values<T>(c.rows * c.width, 1), dy = random_values<T>(c.rows * c.width, 2);
  const std::vector<T> residual = random_values<T>(c.rows * c.width, 3);
  const std::vector<float> weight = random_values<float>(c.width, 4);
  const std::vector<float> mean = random_values<float>(c.rows, 5, 0.2);
  std::vector<float> rstd = random_values<float>(c.rows, 6, 0.1);
  for (float& value : rstd) value += 1;
  std::vector<float> dweight = random_values<float>(c.width, 7), dbias = random_values<float>(c.width, 8),
                     sum = random_values<float>(c.width, 9);
  const bool with_dbias = !c.rms && c.bias;

  const DeviceArray<T> device_x(x, offset), device_dy(dy, offset), device_dx(residual, offset);
  const DeviceArray<float> device_weight(weight), device_mean(mean), device_rstd(rstd), device_dweight(dweight),
      device_dbias(dbias), device_sum(sum);
  const DeviceArray<std::uint8_t> device_workspace(kernels::norm_backward_workspace_bytes<T>(cuda, c.rows, c.width));
  norm_backward(cuda, NormBackward<T>{.dy = device_dy.data(),
                                      .x = device_x.data(),
                                      .weight = device_weight.data(),
                                      .mean = c.rms ? nullptr : device_mean.data(),
                                      .rstd = device_rstd.data(),
                                      .residual = c.residual ? device_dx.data() : nullptr,  // in place
                                      .dx = device_dx.data(),
                                      .dweight = device_dweight.data(),
                                      .dbias = with_dbias ? device_dbias.data() : nullptr,
                                      .residual_sum = c.residual ? device_sum.data() : nullptr,
                                      .rows = c.rows,
                                      .width = c.width,
                                      .workspace = device_workspace.data()});

  std::vector<double> of_dx, of_dweight(c.width), of_dbias(c.width), of_sum(c.width);
  for (std::int64_t i = 0; i < c.width; ++i) {
    of_dweight[i] = std::abs(dweight[i]);
    of_dbias[i] = std::abs(dbias[i]);
    of_sum[i] = std::abs(sum[i]);
  }
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const double center = c.rms ? 0 : std::abs(mean[row]), share = 1 / static_cast<double>(c.width);
    const auto n = [&](std::int64_t i) { return (std::abs(x[row * c.width + i]) + center) * rstd[row]; };
    const auto g = [&](std::int64_t i) { return std::abs(double{dy[row * c.width + i]} * weight[i]); };
    double mean_g = 0, mean_gn = 0;
    for (std::int64_t i = 0; i < c.width; ++i) {
      mean_g += g(i) * share;
      mean_gn += g(i) * n(i) * share;
      of_dweight[i] += std::abs(dy[row * c.width + i]) * n(i);
      of_dbias[i] += std::abs(dy[row * c.width + i]);
    }
    for (std::int64_t i = 0; i < c.width; ++i) {
      const double along = c.residual ? std::abs(residual[row * c.width + i]) : 0;
      of_sum[i] += along;
      of_dx.push_back((g(i) + mean_g + n(i) * mean_gn) * rstd[row] + along);
    }
  }
  std::vector<T> dx = residual;
  std::vector<std::uint8_t> workspace(kernels::norm_backward_workspace_bytes<T>(Cpu{}, c.rows, c.width));
  norm_backward(Cpu{}, NormBackward<T>{.dy = dy.data(),
                                       .x = x.data(),
                                       .weight = weight.data(),
                                       .mean = c.rms ? nullptr : mean.data(),
                                       .rstd = rstd.data(),
                                       .residual = c.residual ? dx.data() : nullptr,
                                       .dx = dx.data(),
                                       .dweight = dweight.data(),
                                       .dbias = with_dbias ? dbias.data() : nullptr,
                                       .residual_sum = c.residual ? sum.data() : nullptr,
                                       .rows = c.rows,
                                       .width = c.width,
                                       .workspace = workspace.data()});
  expect_agreement(device_dx.host(), dx, of_dx, roundings_of_sum(c.width), "dx");
  expect_agreement(device_dweight.host(), dweight, of_dweight, roundings_of_sum(c.rows), "dweight");
  expect_agreement(device_dbias.host(), dbias, of_dbias, roundings_of_sum(c.rows), "dbias");
  expect_agreement(device_sum.host(), sum, of_sum, roundings_of_sum(c.rows), "sum of residual");
}

TEST_P(NormCuda, BackwardAgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { backward_agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, NormCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
