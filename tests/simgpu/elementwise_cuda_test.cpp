// The simplest passes over memory on the GPU against the CPU: the same bits.
#include "kernels/elementwise.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct ElementwiseCuda : CudaTest {};

constexpr std::int64_t counts[] = {1, 3, 7, 8, 9, 100, 1023, 9001};

template <class T>
void fill_agrees(kernels::Cuda cuda, std::int64_t count, std::int64_t offset) {
  std::vector<T> x(count);
  kernels::fill(Cpu{}, x.data(), count, -1.7f);
  const DeviceArray<T> device_x(count, offset);
  kernels::fill(cuda, device_x.data(), count, -1.7f);
  expect_equal(device_x.host(), x, "fill");
}

TEST_P(ElementwiseCuda, FillAgreesWithTheCpu) {
  for (const std::int64_t count : counts) {
    for (const std::int64_t offset : {0, 1, 3, 7}) {
      fill_agrees<float>(cuda(), count, offset);
      fill_agrees<bf16>(cuda(), count, offset);
      fill_agrees<double>(cuda(), count, offset);
    }
  }
}

TEST_P(ElementwiseCuda, ZeroRangesAgreesWithTheCpu) {
  const std::vector<kernels::Range> ranges = {{0, 1}, {3, 20}, {64, 64}, {100, 9000}};
  std::vector<float> x = random_values<float>(9001, 1);
  const DeviceArray<float> device_x(x, 1);
  kernels::zero_ranges(Cpu{}, kernels::ZeroRanges<float>{x.data(), ranges.data(), std::ssize(ranges), 8918});
  const DeviceArray<kernels::Range> device_ranges(ranges);
  kernels::zero_ranges(cuda(),
                       kernels::ZeroRanges<float>{device_x.data(), device_ranges.data(), std::ssize(ranges), 8918});
  expect_equal(device_x.host(), x, "zero ranges");
}

template <class From, class To>
void cast_agrees(kernels::Cuda cuda, std::int64_t count, std::int64_t offset) {
  std::vector<From> x = random_values<From>(count, 1);
  x.front() = From(std::numeric_limits<float>::infinity());
  x.back() = From(std::numeric_limits<float>::max());  // rounds to infinity in bf16
  std::vector<To> y(count);
  kernels::cast(Cpu{}, x.data(), y.data(), count);
  const DeviceArray<From> device_x(x, offset);
  const DeviceArray<To> device_y(count, offset);
  kernels::cast(cuda, device_x.data(), device_y.data(), count);
  expect_equal(device_y.host(), y, "cast");
}

TEST_P(ElementwiseCuda, CastAgreesWithTheCpu) {
  for (const std::int64_t count : counts) {
    for (const std::int64_t offset : {0, 1}) {
      cast_agrees<float, float>(cuda(), count, offset);
      cast_agrees<float, bf16>(cuda(), count, offset);
      cast_agrees<bf16, float>(cuda(), count, offset);
      cast_agrees<bf16, bf16>(cuda(), count, offset);
    }
  }
}

TEST_P(ElementwiseCuda, CastRoundsTiesToEvenAndKeepsNan) {
  // Values half way between two neighbours of bf16, values around them, and denormal numbers.
  const std::vector<float> x = {1.00390625f, 1.01171875f, 1.0039063f, 1.0039062f, -1.00390625f, 1e-40f, 9e-41f, -0.0f};
  std::vector<bf16> y(x.size());
  kernels::cast(Cpu{}, x.data(), y.data(), 8);
  const DeviceArray<float> device_x(x), nan(std::vector<float>(9, std::numeric_limits<float>::quiet_NaN()));
  const DeviceArray<bf16> device_y(8), device_nan(9);
  kernels::cast(cuda(), device_x.data(), device_y.data(), 8);
  kernels::cast(cuda(), nan.data(), device_nan.data(), 9);
  expect_equal(device_y.host(), y, "cast");
  for (const bf16 value : device_nan.host()) EXPECT_TRUE(std::isnan(value));
}

template <class T>
void rows_agree(kernels::Cuda cuda, std::int64_t width, std::int64_t gap, std::int64_t offset) {
  const std::int64_t rows = 11, wide = width + gap;
  const std::vector<T> x = random_values<T>(rows * width, 1);
  std::vector<float> sum = random_values<float>(rows * wide, 2);
  std::vector<T> narrowed = random_values<T>(rows * wide, 3);
  const DeviceArray<T> device_x(x, offset), device_narrowed(narrowed, offset);
  const DeviceArray<float> device_sum(sum, offset);
  kernels::narrow<T>(cuda, {device_sum.data(), device_narrowed.data(), rows, width, width, wide});
  kernels::narrow<T>(Cpu{}, {sum.data(), narrowed.data(), rows, width, width, wide});
  expect_equal(device_narrowed.host(), narrowed, "narrow");
  kernels::accumulate<T>(cuda, {device_x.data(), device_sum.data(), rows, width, width, wide});
  kernels::accumulate<T>(Cpu{}, {x.data(), sum.data(), rows, width, width, wide});
  expect_equal(device_sum.host(), sum, "accumulate");
}

TEST_P(ElementwiseCuda, RowsAreAccumulatedAndNarrowedLikeOnTheCpu) {
  for (const std::int64_t width : {1, 24, 70})
    for (const std::int64_t gap : {0, 3, 8})
      for_types_and_offsets([&]<class T>(std::int64_t offset) { rows_agree<T>(cuda(), width, gap, offset); });
}

TEST_P(ElementwiseCuda, CopyRowsAgreesWithTheCpu) {
  struct Case {
    std::int64_t from_stride, to_stride, rows, row_bytes, offset;
  };
  const Case cases[] = {
      {64, 64, 5, 64, 0},   // one block of memory
      {64, 64, 5, 64, 3},   //
      {100, 7, 1, 7, 1},    // one row
      {96, 64, 9, 48, 0},   // by 16 bytes
      {96, 64, 9, 48, 4},   // by 4
      {100, 52, 9, 20, 0},  //
      {98, 50, 9, 18, 2},   // by 2
      {97, 64, 9, 48, 0},   // by 1
      {16, 16, 0, 16, 0},
  };
  for (const Case& c : cases) {
    std::vector<std::uint8_t> from(c.from_stride * c.rows + 1), to(c.to_stride * c.rows + 1, 0xee);
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 37);
    const DeviceArray<std::uint8_t> device_from(from, c.offset), device_to(to, c.offset);
    kernels::copy_rows(Cpu{}, from.data(), c.from_stride, to.data(), c.to_stride, c.rows, c.row_bytes);
    kernels::copy_rows(cuda(), device_from.data(), c.from_stride, device_to.data(), c.to_stride, c.rows, c.row_bytes);
    EXPECT_EQ(device_to.host(), to) << "rows of " << c.row_bytes << " bytes";
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, ElementwiseCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
