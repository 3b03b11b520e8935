// Softmax cross-entropy on the GPU against the CPU, in slices of the vocabulary and whole.
//
// The bounds: exp(l - max) has a relative error of u (|l - max| + 3), and the sum 4 sqrt(n) u more; |l - max| < 30.
#include "kernels/cross_entropy.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, num_tokens, stride, first_token;
  double shift;  // added to all logits
};
// Rows with their target before, in and after the slice; an empty slice; more rows than threads that add the losses;
// and more logits than the threads of a row keep in registers, 8 accesses each.
const Case cases[] = {{1, 1, 8, 0, 0},       {5, 3, 8, 2, 0},        {4, 17, 17, 20, 1e4},     {3, 64, 64, 0, -1e4},
                      {9, 100, 104, 50, 10}, {6, 301, 301, 7, 0},    {4, 1500, 1520, 0, 0},    {3, 0, 8, 30, 0},
                      {1100, 5, 8, 10, 0},   {1, 9001, 9008, 13, 0}, {1, 120000, 120008, 0, 0}};

struct CrossEntropyCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const double roundings = roundings_of_sum(c.num_tokens) + 40, scale = 1.0 / 37;
  std::vector<T> logits = random_values<T>(c.rows * c.stride, 1, 3);
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i)
    logits[i] = i % c.stride < c.num_tokens ? static_cast<T>(logits[i] + static_cast<float>(c.shift))
                                            : static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  std::vector<std::int32_t> targets(c.rows);
  for (std::int64_t row = 0; row < c.rows; ++row)
    targets[row] = row % 4 == 3 ? -1 : static_cast<std::int32_t>(row * 911 % (c.num_tokens + 2 * c.first_token + 1));
  const DeviceArray<std::int32_t> device_targets(targets);
  const DeviceArray<T> device_logits(logits, offset);

  const std::int64_t size = 3 * c.rows;
  std::vector<float> statistics(size);
  const DeviceArray<float> device_statistics(size);
  const kernels::CrossEntropyStatistics<T> of_slice{logits.data(), targets.data(), statistics.data(), c.rows,
                                                    c.num_tokens,  c.stride,       c.first_token};
  cross_entropy_statistics(Cpu{}, of_slice);
  kernels::CrossEntropyStatistics<T> on_device = of_slice;
  on_device.logits = device_logits.data();
  on_device.targets = device_targets.data();
  on_device.statistics = device_statistics.data();
  cross_entropy_statistics(cuda, on_device);
  const auto part = [&](const std::vector<float>& all, int which) {
    return std::vector<float>(all.begin() + which * c.rows, all.begin() + (which + 1) * c.rows);
  };
  const std::vector<float> of_device = device_statistics.host(), sums = part(statistics, 1);
  expect_equal(part(of_device, 0), part(statistics, 0), "max");
  expect_agreement(part(of_device, 1), sums, std::vector<double>(sums.begin(), sums.end()), roundings, "sum");
  expect_equal(part(of_device, 2), part(statistics, 2), "target");

  // Both from the same statistics, so that only this pass can differ; those of another slice follow. The whole
  // vocabulary has its target in it, and computes its own.
  const bool whole = c.first_token == 0;
  for (std::int64_t i = 0; i < size; ++i) statistics.push_back(i < c.rows ? static_cast<float>(c.shift) : 1.5f);
  const DeviceArray<float> joined(statistics);
  std::vector<double> losses(c.rows), right(c.rows);
  const DeviceArray<double> device_losses(c.rows), device_right(c.rows), losses_alone(c.rows);
  kernels::CrossEntropy<T> args{.logits = logits.data(),
                                .statistics = whole ? nullptr : statistics.data(),
                                .slices = 2,
                                .targets = targets.data(),
                                .losses = losses.data(),
                                .right = right.data(),
                                .rows = c.rows,
                                .num_tokens = c.num_tokens,
                                .stride = c.stride,
                                .first_token = c.first_token,
                                .scale = scale,
                                .gradient = true};
  cross_entropy(Cpu{}, args);
  args.logits = device_logits.data();
  args.statistics = whole ? nullptr : joined.data();
  args.targets = device_targets.data();
  args.losses = losses_alone.data();
  args.right = device_right.data();
  args.gradient = false;
  cross_entropy(cuda, args);
  expect_equal(device_right.host(), right, "right");
  args.right = nullptr;
  args.losses = device_losses.data();
  args.gradient = true;
  cross_entropy(cuda, args);
  expect_equal(losses_alone.host(), device_losses.host(), "losses without a gradient");
  const std::vector<double> of_cuda = device_losses.host();
  for (std::int64_t row = 0; row < c.rows; ++row)
    ASSERT_NEAR(of_cuda[row], losses[row], 2 * roundings * half_ulp<float>()) << "loss of row " << row;
  std::vector<double> magnitude;
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i)
    magnitude.push_back(i % c.stride < c.num_tokens ? std::abs(static_cast<double>(logits[i])) + scale : 0);
  expect_agreement(device_logits.host(), logits, magnitude, roundings, "dlogits");

  double sum = 0.25;
  const DeviceArray<double> device_sum(std::vector<double>{sum});
  sum_of_losses(Cpu{}, {losses.data(), c.rows, &sum});
  const DeviceArray<double> same_losses(losses);
  sum_of_losses(cuda, {same_losses.data(), c.rows, device_sum.data()});
  ASSERT_NEAR(device_sum.host()[0], sum, 1e-12 * std::abs(sum));
}

TEST_P(CrossEntropyCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.num_tokens));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(CrossEntropyCuda, NanInTheLogitsReachesTheLoss) {
  std::vector<float> logits(64, 1.0f);
  logits[37] = std::numeric_limits<float>::quiet_NaN();
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<double> losses(1);
  const DeviceArray<std::int32_t> targets(std::vector<std::int32_t>{3});
  cross_entropy(cuda(), kernels::CrossEntropy<float>{.logits = device_logits.data(),
                                                     .targets = targets.data(),
                                                     .losses = losses.data(),
                                                     .rows = 1,
                                                     .num_tokens = 64,
                                                     .stride = 64,
                                                     .first_token = 0,
                                                     .scale = 1,
                                                     .gradient = false});
  EXPECT_TRUE(std::isnan(losses.host()[0]));
}

INSTANTIATE_TEST_SUITE_P(Generations, CrossEntropyCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
