// The optimizers on the GPU against the CPU over several steps, with 16-byte accesses and, at an address one element
// further, without.
#include <limits>

#include "kernels/optimizer.h"
#include "kernels/verdict.h"
#include "tests/kernels/optimizer_case.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::OptimizerSegment;
using kernels::StepScalars;
using kernels::tests::beta1, kernels::tests::beta2, kernels::tests::epsilon;
using kernels::tests::OptimizerCase, kernels::tests::scalars_of;

constexpr int steps = 3;

// Gaps stay as they are. The last is of several tiles of 4096 elements, one with many segments, one without an end.
const OptimizerCase cases[] = {
    {1, {{0, 1, 0.1f}}},
    {64, {{0, 64, 0.0f}}},
    {100, {{3, 17, 0.1f}, {17, 18, 0.0f}, {40, 99, 0.5f}}},
    {13000, {{0, 5, 0.0f}, {5, 6, 0.1f}, {8, 333, 0.2f}, {333, 9001, 0.1f}, {9002, 13000, 0.0f}}},
    {5, {}},
};

struct OptimizerCuda : CudaTest {};

/// weight and value after the steps, on the CPU and on the GPU. A step multiplies the error by at most 1 + rate decay
/// and adds its own roundings: some u of the weight, and of the change, rate (decay |w| + |m| / deviation) with
/// |m| / deviation below 10 by the ratio of the moments' weights.
void expect_state(const OptimizerCase& c, const std::vector<float>& weight, const DeviceArray<float>& device_weight,
                  const DeviceArray<bf16>& device_value, double change) {
  std::vector<double> magnitude;
  for (const float value : weight) magnitude.push_back(steps * (std::abs(value) + change));
  const std::vector<float> of_cuda = device_weight.host();
  const std::vector<bf16> value = device_value.host();
  expect_agreement(of_cuda, weight, magnitude, 16, "weight");
  for (std::int64_t i = 0; i < c.count; ++i) {
    ASSERT_EQ(value[i].bits, c.segment_of(i) ? bf16(of_cuda[i]).bits : bf16(7.0f).bits) << i;
  }
}

void adamw_agrees(kernels::Cuda cuda, const OptimizerCase& c, std::int64_t offset, bool with_value) {
  std::vector<float> weight = random_values<float>(c.count, 1), first(c.count), second(c.count);
  std::vector<bf16> value(c.count, bf16(7.0f));
  const DeviceArray<float> device_weight(weight, offset), device_first(first), device_second(second);
  const DeviceArray<bf16> device_value(value, offset);
  double change = 0;
  for (int step = 1; step <= steps; ++step) {
    const std::vector<StepScalars> scalars = {scalars_of(step)};
    const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
    const DeviceArray<StepScalars> device_scalars(scalars);
    const DeviceArray<float> device_gradient(gradient, offset);
    const std::vector<OptimizerSegment> segments =
        c.segments_of(weight.data(), gradient.data(), with_value ? value.data() : nullptr);
    const DeviceArray<OptimizerSegment> device_segments(
        c.segments_of(device_weight.data(), device_gradient.data(), with_value ? device_value.data() : nullptr));
    kernels::AdamW<float> args{.segments = segments.data(),
                               .num_segments = std::ssize(segments),
                               .count = c.count,
                               .first_moment = first.data(),
                               .second_moment = second.data(),
                               .scalars = scalars.data(),
                               .first = kernels::MovingAverage(beta1),
                               .second = kernels::MovingAverage(beta2),
                               .epsilon = epsilon};
    adamw(Cpu{}, args);
    args.segments = device_segments.data();
    args.first_moment = device_first.data();
    args.second_moment = device_second.data();
    args.scalars = device_scalars.data();
    adamw(cuda, args);
    cudaStreamSynchronize(cuda.stream);  // before the gradient is freed
    change += scalars[0].rate * 10;
  }
  if (with_value) expect_state(c, weight, device_weight, device_value, change);
  const std::vector<double> of_first(c.count, steps * 5.0 * (1 - beta1));  // gradients are below 10, halved by clipping
  const std::vector<double> of_second(second.begin(), second.end());       // a sum of positive terms
  expect_agreement(device_first.host(), first, of_first, 8, "first moment");
  expect_agreement(device_second.host(), second, of_second, 8 * steps, "second moment");
}

TEST_P(OptimizerCuda, AdamWAgreesWithTheCpu) {
  for (const OptimizerCase& c : cases) {
    for (const std::int64_t offset : {0, 1}) {
      SCOPED_TRACE(std::to_string(c.count) + " elements, offset " + std::to_string(offset));
      adamw_agrees(cuda(), c, offset, true);
      if (HasFatalFailure()) return;
    }
    adamw_agrees(cuda(), c, 0, false);
  }
}

// Places of a tensor of 29 columns, of which a part has 7, and of one whose columns are all here.
TEST_P(OptimizerCuda, MomentsInBf16AreThoseOfTheCpu) {
  for (const OptimizerCase& c : cases)
    for (const std::int64_t offset : {0, 1})
      for (const std::int64_t columns : {7, 29}) {
        SCOPED_TRACE(std::to_string(c.count) + " elements, offset " + std::to_string(offset) + ", " +
                     std::to_string(columns) + " columns");
        std::vector<float> weight = random_values<float>(c.count, 1);
        std::vector<bf16> first(c.count), second(c.count);
        const DeviceArray<float> device_weight(weight, offset);
        const DeviceArray<bf16> device_first(first), device_second(second);
        for (int step = 1; step <= steps; ++step) {
          const std::vector<StepScalars> scalars = {scalars_of(step)};
          const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
          const DeviceArray<StepScalars> device_scalars(scalars);
          const DeviceArray<float> device_gradient(gradient, offset);
          const auto segments_of = [&](float* w, const float* g) {
            std::vector<OptimizerSegment> segments = c.segments_of(w, g, nullptr);
            for (OptimizerSegment& segment : segments) {
              segment.key = 0x123456789abcdef;
              segment.place = {.first = segment.begin + offset, .columns = columns, .width = 29, .origin = 290};
            }
            return segments;
          };
          const std::vector<OptimizerSegment> segments = segments_of(weight.data(), gradient.data());
          const DeviceArray<OptimizerSegment> device_segments(
              segments_of(device_weight.data(), device_gradient.data()));
          kernels::AdamW<bf16> args{.segments = segments.data(),
                                    .num_segments = std::ssize(segments),
                                    .count = c.count,
                                    .first_moment = first.data(),
                                    .second_moment = second.data(),
                                    .scalars = scalars.data(),
                                    .first = kernels::MovingAverage(beta1),
                                    .second = kernels::MovingAverage(beta2),
                                    .epsilon = epsilon};
          adamw(Cpu{}, args);
          args.segments = device_segments.data();
          args.first_moment = device_first.data();
          args.second_moment = device_second.data();
          args.scalars = device_scalars.data();
          adamw(cuda(), args);
          cudaStreamSynchronize(cuda().stream);
        }
        expect_equal(device_first.host(), first, "first moment");
        expect_equal(device_second.host(), second, "second moment");
        if (HasFatalFailure()) return;
      }
}

void sgd_agrees(kernels::Cuda cuda, const OptimizerCase& c, std::int64_t offset, bool with_momentum) {
  std::vector<float> weight = random_values<float>(c.count, 1), momentum(c.count);
  std::vector<bf16> value(c.count, bf16(7.0f));
  const DeviceArray<float> device_weight(weight, offset), device_momentum(momentum, offset);
  const DeviceArray<bf16> device_value(value, offset);
  double change = 0;
  for (int step = 1; step <= steps; ++step) {
    const std::vector<StepScalars> scalars = {scalars_of(step)};
    const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
    const DeviceArray<StepScalars> device_scalars(scalars);
    const DeviceArray<float> device_gradient(gradient, offset);
    const std::vector<OptimizerSegment> segments = c.segments_of(weight.data(), gradient.data(), value.data());
    const DeviceArray<OptimizerSegment> device_segments(
        c.segments_of(device_weight.data(), device_gradient.data(), device_value.data()));
    kernels::Sgd args{.segments = segments.data(),
                      .num_segments = std::ssize(segments),
                      .count = c.count,
                      .momentum_buffer = with_momentum ? momentum.data() : nullptr,
                      .scalars = scalars.data(),
                      .momentum = 0.9f};
    sgd(Cpu{}, args);
    args.segments = device_segments.data();
    if (with_momentum) args.momentum_buffer = device_momentum.data();
    args.scalars = device_scalars.data();
    sgd(cuda, args);
    cudaStreamSynchronize(cuda.stream);
    change += scalars[0].rate * 15;  // the sum of up to three gradients below 5
  }
  expect_state(c, weight, device_weight, device_value, change);
  expect_agreement(device_momentum.host(), momentum, std::vector<double>(c.count, steps * 15.0), 4, "momentum");
}

TEST_P(OptimizerCuda, SgdAgreesWithTheCpu) {
  for (const OptimizerCase& c : cases) {
    for (const std::int64_t offset : {0, 1}) {
      SCOPED_TRACE(std::to_string(c.count) + " elements, offset " + std::to_string(offset));
      sgd_agrees(cuda(), c, offset, true);
      sgd_agrees(cuda(), c, offset, false);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(OptimizerCuda, SignStepAgreesWithTheCpu) {
  for (const std::int64_t count : {1, 7, 1000}) {
    std::vector<float> weight = random_values<float>(count, 1), gradient = random_values<float>(count, 2);
    gradient[0] = 0;
    const DeviceArray<float> device_weight(weight, 1), device_gradient(gradient, 1);
    const std::vector<StepScalars> scalars(1);
    const DeviceArray<StepScalars> device_scalars(scalars);
    sign_step(Cpu{}, kernels::SignStep{weight.data(), gradient.data(), count, 0.3f, scalars.data()});
    sign_step(cuda(),
              kernels::SignStep{device_weight.data(), device_gradient.data(), count, 0.3f, device_scalars.data()});
    cudaStreamSynchronize(cuda().stream);
    expect_equal(device_weight.host(), weight, "weight");
  }
}

TEST_P(OptimizerCuda, ARejectedStepChangesNothing) {
  constexpr std::int64_t count = 100;
  const std::vector<float> start = random_values<float>(count, 1);
  const std::vector<bf16> value(count, bf16(7.0f));
  const DeviceArray<float> weight(start), first(start), second(start),
      gradient(std::vector<float>(count, std::numeric_limits<float>::quiet_NaN()));
  const DeviceArray<bf16> device_value(value);
  const OptimizerCase whole = {count, {{0, count, 0.1f}}};
  const DeviceArray<OptimizerSegment> segments(whole.segments_of(weight.data(), gradient.data(), device_value.data()));
  StepScalars scalars = scalars_of(3);
  scalars.accepted = 0;
  const DeviceArray<StepScalars> device_scalars(std::vector<StepScalars>{scalars});
  adamw(cuda(), kernels::AdamW<float>{.segments = segments.data(),
                                      .num_segments = 1,
                                      .count = count,
                                      .first_moment = first.data(),
                                      .second_moment = second.data(),
                                      .scalars = device_scalars.data(),
                                      .first = kernels::MovingAverage(beta1),
                                      .second = kernels::MovingAverage(beta2),
                                      .epsilon = epsilon});
  sgd(cuda(), kernels::Sgd{.segments = segments.data(),
                           .num_segments = 1,
                           .count = count,
                           .momentum_buffer = first.data(),
                           .scalars = device_scalars.data(),
                           .momentum = 0.9f});
  sign_step(cuda(), kernels::SignStep{weight.data(), gradient.data(), count, 0.3f, device_scalars.data()});
  cudaStreamSynchronize(cuda().stream);
  expect_equal(weight.host(), start, "weight");
  expect_equal(first.host(), start, "first moment");
  expect_equal(second.host(), start, "second moment");
  for (const bf16 element : device_value.host()) ASSERT_EQ(element.bits, bf16(7.0f).bits);
}

// The deviations are ratios of sums of a few positive terms.
TEST_P(OptimizerCuda, TheVerdictAgreesWithTheCpu) {
  constexpr int length = 40;
  std::vector<kernels::SpikeWindow> window(1);
  std::vector<StepScalars> scalars(1);
  scalars[0].targets = 8;
  const DeviceArray<kernels::SpikeWindow> device_window(window);
  std::vector<std::uint64_t> rejected(1);  // the host learns of it three steps later
  const std::vector<float> values = random_values<float>(2 * 60, 3);
  for (int step = 0; step < 60; ++step) {
    const bool spike = step == 30 || step == 50;
    const std::vector<double> sums = {8 * (20.0 + values[2 * step]), 20.0 + values[2 * step + 1]};
    std::vector<double> loss_sum = {sums[0]}, squared_norm = {sums[1] * (spike ? 1e4 : 1)};
    if (step == 55) loss_sum[0] = std::numeric_limits<double>::infinity();
    scalars[0].step = static_cast<std::uint64_t>(step);
    if (step == 33 || step == 53) rejected[0] = 0;
    const DeviceArray<std::uint64_t> device_rejected(rejected);
    kernels::Verdict args{.loss_sum = loss_sum.data(),
                          .squared_norm = squared_norm.data(),
                          .window = window.data(),
                          .length = length,
                          .sigma = 20,
                          .scalars = scalars.data(),
                          .rejected = rejected.data()};
    judge_step(Cpu{}, args);
    const DeviceArray<double> device_loss(loss_sum), device_norm(squared_norm);
    const DeviceArray<StepScalars> device_scalars(scalars);
    args.loss_sum = device_loss.data();
    args.squared_norm = device_norm.data();
    args.window = device_window.data();
    args.scalars = device_scalars.data();
    args.rejected = device_rejected.data();
    judge_step(cuda(), args);
    cudaStreamSynchronize(cuda().stream);
    const StepScalars result = device_scalars.host()[0];
    const bool is_behind = (step > 30 && step < 33) || (step > 50 && step < 53) || step > 55;
    ASSERT_EQ(result.accepted, spike || step == 55 || is_behind ? 0u : 1u) << step;
    ASSERT_EQ(device_rejected.host()[0], rejected[0]) << step;
    ASSERT_EQ(scalars[0].accepted, result.accepted) << step;
    ASSERT_NEAR(result.loss_deviations, scalars[0].loss_deviations, 1e-6) << step;
    ASSERT_NEAR(result.norm_deviations, scalars[0].norm_deviations, 1e-6 * (1 + std::abs(scalars[0].norm_deviations)))
        << step;
    ASSERT_EQ(device_window.host()[0].accepted, window[0].accepted) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, OptimizerCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
