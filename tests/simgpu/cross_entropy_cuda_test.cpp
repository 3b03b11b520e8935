// Softmax cross-entropy on the GPU against the CPU, pass by pass, in slices of the vocabulary.
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
// Rows with their target before, in and after the slice; the last but one is an empty slice, the last has more rows
// than one thread each in the kernel that adds the losses.
const Case cases[] = {{1, 1, 8, 0, 0},       {5, 3, 8, 2, 0},       {4, 17, 17, 20, 1e4},
                      {3, 64, 64, 0, -1e4},  {9, 100, 104, 50, 10}, {6, 301, 301, 7, 0},
                      {4, 1500, 1504, 0, 0}, {3, 0, 8, 30, 0},      {300, 5, 8, 10, 0}};

struct CrossEntropyCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  constexpr double u = half_ulp<float>();
  const double roundings = roundings_of_sum(c.num_tokens) + 40, scale = 1.0 / 37;
  const float poison = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> logits = random_values<float>(c.rows * c.stride, 1, 3), max(c.rows);
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i)
    logits[i] = i % c.stride < c.num_tokens ? logits[i] + static_cast<float>(c.shift) : poison;
  std::vector<std::int32_t> targets(c.rows);
  for (std::int64_t row = 0; row < c.rows; ++row)
    targets[row] = row % 4 == 3 ? -1 : static_cast<std::int32_t>(row * 911 % (c.num_tokens + 2 * c.first_token + 1));

  const DeviceArray<std::int32_t> device_targets(targets);
  const DeviceArray<float> device_logits(logits, offset), device_max(c.rows);
  cross_entropy_max(Cpu{}, kernels::CrossEntropyMax<float>{logits.data(), max.data(), c.rows, c.num_tokens, c.stride});
  cross_entropy_max(
      cuda, kernels::CrossEntropyMax<float>{device_logits.data(), device_max.data(), c.rows, c.num_tokens, c.stride});
  expect_equal(device_max.host(), max, "max");

  // The maximum over all slices.
  for (float& value : max) value = std::max(value, static_cast<float>(c.shift));
  const DeviceArray<float> joined_max(max), device_sum(c.rows), device_target(c.rows);
  std::vector<float> sum(c.rows), target(c.rows), exps = logits;
  cross_entropy_sum(
      Cpu{}, kernels::CrossEntropySum<float>{exps.data(), max.data(), targets.data(), sum.data(), target.data(), c.rows,
                                             c.num_tokens, c.stride, c.first_token});
  cross_entropy_sum(cuda, kernels::CrossEntropySum<float>{
                              device_logits.data(), joined_max.data(), device_targets.data(), device_sum.data(),
                              device_target.data(), c.rows, c.num_tokens, c.stride, c.first_token});
  expect_agreement(device_sum.host(), sum, std::vector<double>(sum.begin(), sum.end()), roundings, "sum");
  expect_equal(device_target.host(), target, "target");
  const std::vector<float> device_exps = device_logits.host();
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i) {
    if (i % c.stride < c.num_tokens)
      ASSERT_NEAR(device_exps[i], exps[i], 2 * 40 * u * exps[i] + 1e-38) << "exps [" << i << "]";
    else
      ASSERT_TRUE(std::isnan(device_exps[i])) << "the padding is not touched";
  }

  // Both from the same inputs, so that only this pass can differ. The sum over all slices is positive.
  for (float& value : sum) value += 1;
  const DeviceArray<float> joined_exps(exps, offset), joined_sum(sum), joined_target(target);
  double loss = 0.25, magnitude_of_loss = 0;
  for (std::int64_t row = 0; row < c.rows; ++row)
    magnitude_of_loss += std::abs(std::log(sum[row])) + std::abs(max[row]) + std::abs(target[row]);
  double right = 0;
  const DeviceArray<double> device_right(std::vector<double>{right});
  const DeviceArray<double> device_loss(std::vector<double>{loss}), loss_alone(std::vector<double>{loss});
  const DeviceArray<T> device_dlogits(c.rows * c.stride, offset);
  std::vector<T> dlogits(c.rows * c.stride);
  kernels::CrossEntropyGradient<T> args{exps.data(),    max.data(),     sum.data(),    target.data(),
                                        targets.data(), dlogits.data(), &loss,         c.rows,
                                        c.num_tokens,   c.stride,       c.first_token, scale};
  args.right = &right;
  cross_entropy_gradient(Cpu{}, args);
  args.right = device_right.data();
  args.exps = joined_exps.data();
  args.max = joined_max.data();
  args.sum = joined_sum.data();
  args.target = joined_target.data();
  args.targets = device_targets.data();
  args.dlogits = device_dlogits.data();
  args.loss_sum = device_loss.data();
  cross_entropy_gradient(cuda, args);
  EXPECT_EQ(device_right.host()[0], right);
  args.right = nullptr;
  args.dlogits = nullptr;
  args.loss_sum = loss_alone.data();
  cross_entropy_gradient(cuda, args);
  // Added in the same order in double: only the logarithms may differ, by an ulp.
  expect_agreement(device_loss.host(), {loss}, {magnitude_of_loss}, 4, "loss");
  expect_equal(loss_alone.host(), device_loss.host(), "loss without a gradient");
  std::vector<double> magnitude;
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i)
    magnitude.push_back(i % c.stride < c.num_tokens ? scale * (exps[i] / sum[i / c.stride] + 1) : 0);
  expect_agreement(device_dlogits.host(), dlogits, magnitude, 4, "dlogits");

  if constexpr (std::is_same_v<T, float>) {
    args.dlogits = joined_exps.data();
    cross_entropy_gradient(cuda, args);
    expect_equal(joined_exps.host(), device_dlogits.host(), "dlogits in place of exps");
  }
}

TEST_P(CrossEntropyCuda, EachPassAgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.num_tokens));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(CrossEntropyCuda, NanInTheLogitsReachesTheSum) {
  std::vector<float> logits(64, 1.0f);
  logits[37] = std::numeric_limits<float>::quiet_NaN();
  const DeviceArray<float> device_logits(logits), max(1), sum(1), target(1);
  const DeviceArray<std::int32_t> targets(std::vector<std::int32_t>{3});
  cross_entropy_max(cuda(), kernels::CrossEntropyMax<float>{device_logits.data(), max.data(), 1, 64, 64});
  cross_entropy_sum(cuda(), kernels::CrossEntropySum<float>{device_logits.data(), max.data(), targets.data(),
                                                            sum.data(), target.data(), 1, 64, 64, 0});
  EXPECT_TRUE(std::isnan(sum.host()[0]));
}

INSTANTIATE_TEST_SUITE_P(Generations, CrossEntropyCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
