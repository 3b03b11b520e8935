// Sums on the GPU against the CPU, and that their bits repeat.
#include "kernels/reduce.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Range;

struct ReduceCuda : CudaTest {};

struct Case {
  std::int64_t rows, width, stride;
};
// The second to last has several parts, the last several tiles of columns.
const Case cases[] = {{1, 1, 1}, {3, 7, 7}, {40, 17, 20}, {5, 64, 64}, {33, 8, 16}, {300, 48, 56}, {10, 1100, 1104}};

template <class T>
void column_sum_agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::vector<T> x = random_values<T>(c.rows * c.stride, 1);
  std::vector<float> sum = random_values<float>(c.width, 2);
  const DeviceArray<T> device_x(x, offset);
  const DeviceArray<float> device_sum(sum), again(sum);
  const DeviceArray<std::uint8_t> device_workspace(kernels::column_sum_workspace_bytes<T>(cuda, c.rows, c.width));
  std::vector<double> magnitude(sum.begin(), sum.end());
  for (double& value : magnitude) value = std::abs(value);
  for (std::int64_t row = 0; row < c.rows; ++row)
    for (std::int64_t i = 0; i < c.width; ++i) magnitude[i] += std::abs(x[row * c.stride + i]);
  std::vector<std::uint8_t> workspace(kernels::column_sum_workspace_bytes<T>(Cpu{}, c.rows, c.width));
  column_sum(Cpu{}, kernels::ColumnSum<T>{x.data(), sum.data(), c.rows, c.width, c.stride, workspace.data()});
  for (const auto* to : {&device_sum, &again}) {
    column_sum(cuda,
               kernels::ColumnSum<T>{device_x.data(), to->data(), c.rows, c.width, c.stride, device_workspace.data()});
  }
  expect_agreement(device_sum.host(), sum, magnitude, roundings_of_sum(c.rows), "sum");
  expect_equal(again.host(), device_sum.host(), "again");
}

TEST_P(ReduceCuda, ColumnSumAgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { column_sum_agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(ReduceCuda, SquaredNormAgreesWithTheCpu) {
  // No range; ranges of less than a chunk of 4096; gaps; odd beginnings; more chunks than blocks.
  const std::vector<Range> range_lists[] = {{},
                                            {{0, 1}},
                                            {{3, 3}, {5, 100}, {101, 102}},
                                            {{1, 5000}, {6000, 20001}},
                                            {{0, 4096}, {4096, 8192}, {8192, 90001}}};
  const std::vector<float> x = random_values<float>(90001, 1);
  const DeviceArray<float> device_x(x);
  for (const std::vector<Range>& ranges : range_lists) {
    const auto count = static_cast<std::int64_t>(ranges.size());
    const DeviceArray<Range> device_ranges(ranges);
    const DeviceArray<double> sum(1), again(1);
    const DeviceArray<std::uint8_t> workspace(kernels::squared_norm_workspace_bytes(cuda(), count));
    double expected = 0;
    squared_norm(Cpu{}, {.x = x.data(), .ranges = ranges.data(), .num_ranges = count, .sum = &expected});
    for (const auto* to : {&sum, &again}) {
      squared_norm(cuda(), {.x = device_x.data(),
                            .ranges = device_ranges.data(),
                            .num_ranges = count,
                            .sum = to->data(),
                            .workspace = workspace.data()});
    }
    expect_agreement(sum.host(), {expected}, {expected}, roundings_of_sum(static_cast<std::int64_t>(x.size())), "sum");
    expect_equal(again.host(), sum.host(), "again");
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, ReduceCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
