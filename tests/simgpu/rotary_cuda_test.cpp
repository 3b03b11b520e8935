// Rotary position embedding on the GPU against the CPU.
#include "kernels/rotary.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, length, heads, head_width, stride, first_position;
  bool inverse;
};
const Case cases[] = {{1, 1, 1, 2, 2, 0, false},    {7, 5, 3, 6, 18, 4, false}, {9, 4, 2, 16, 40, 0, true},
                      {6, 6, 3, 64, 192, 3, false}, {5, 2, 3, 24, 75, 1, true}, {3, 3, 2, 128, 512, 9, true},
                      {40, 8, 5, 32, 160, 0, false}};

struct RotaryCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  std::vector<T> x = random_values<T>(c.rows * c.stride, 1);
  std::vector<float> table((c.first_position + c.length) * c.head_width);
  kernels::rotary_table(table.data(), c.first_position + c.length, c.head_width, 10000);
  const DeviceArray<T> device_x(x, offset);
  const DeviceArray<float> device_table(table);
  std::vector<double> magnitude;
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i) {
    const std::int64_t column = i % c.stride, feature = column % c.head_width, half = c.head_width / 2;
    const bool rotated = column < c.heads * c.head_width;
    const std::int64_t partner = feature < half ? i + half : i - half;
    magnitude.push_back(rotated ? std::abs(x[i]) + std::abs(x[partner]) : 0);
  }
  kernels::Rotary<T> args{
      .x = x.data(),
      .table = table.data(),
      .rows = c.rows,
      .heads = c.heads,
      .head_width = c.head_width,
      .stride = c.stride,
      .map = {.sequences = c.rows, .runs = {{c.first_position, c.first_position + c.length}, {0, 0}}},
      .inverse = c.inverse};
  rotary(Cpu{}, args);
  args.x = device_x.data();
  args.table = device_table.data();
  rotary(cuda, args);
  expect_agreement(device_x.host(), x, magnitude, 2, "x");

  std::vector<std::int32_t> positions;  // given ones
  for (std::int64_t row = 0; row < c.rows; ++row) positions.push_back(static_cast<std::int32_t>(row % c.length));
  const DeviceArray<std::int32_t> device_positions(positions);
  args.positions = device_positions.data();
  const std::vector<T> before = device_x.host();
  rotary(cuda, args);
  std::vector<T> expected = before;
  args.x = expected.data();
  args.table = table.data();
  args.positions = positions.data();
  rotary(Cpu{}, args);
  for (std::int64_t i = 0; i < c.rows * c.stride; ++i) {
    const std::int64_t column = i % c.stride, feature = column % c.head_width, half = c.head_width / 2;
    if (column >= c.heads * c.head_width) continue;
    magnitude[i] = std::abs(before[i]) + std::abs(before[feature < half ? i + half : i - half]);
  }
  expect_agreement(device_x.host(), expected, magnitude, 2, "x at given positions");
}

TEST_P(RotaryCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("heads " + std::to_string(c.heads) + " x " + std::to_string(c.head_width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, RotaryCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
