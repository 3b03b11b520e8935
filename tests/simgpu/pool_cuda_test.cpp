// Pooling on the GPU against the CPU: the same bits, since every sum is in ascending order of the rows.
#include "kernels/pool.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  kernels::RowMap map;
  kernels::Run positions;
};
const Case cases[] = {
    {12, 1, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 4}},
    {20, 33, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {3, 7}},
    {9, 104, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 15}, {0, 9}},
    {6, 1000, {.sequences = 2, .length = 9, .runs = {{3, 6}, {0, 0}}}, {0, 1}},
};

struct PoolCuda : CudaTest {};

template <class T>
void pooling_agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const kernels::PoolShape shape{c.rows, c.width, c.map, c.positions, 0.3};
  const std::vector<T> x = random_values<T>(c.rows * c.width, 1);
  const std::vector<T> dsums = random_values<T>(c.map.sequences * c.width, 2);
  std::vector<float> sums(dsums.size());
  std::vector<T> dx(x.size());
  const DeviceArray<T> device_x(x, offset), device_dsums(dsums, offset), device_dx(x, offset);
  const DeviceArray<float> device_sums(sums, offset);
  pool_forward(Cpu{}, kernels::PoolForward<T>{shape, x.data(), sums.data()});
  pool_forward(cuda, kernels::PoolForward<T>{shape, device_x.data(), device_sums.data()});
  expect_equal(device_sums.host(), sums, "sums");
  pool_backward(Cpu{}, kernels::PoolBackward<T>{shape, dsums.data(), dx.data()});
  pool_backward(cuda, kernels::PoolBackward<T>{shape, device_dsums.data(), device_dx.data()});
  expect_equal(device_dx.host(), dx, "dx");
}

TEST_P(PoolCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { pooling_agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, PoolCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
