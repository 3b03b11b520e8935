// Pooling on the GPU against the CPU: the same bits, since every sum is in ascending order of the rows.
#include "kernels/pool.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  kernels::RowMap map;
  kernels::Run positions;
  std::vector<kernels::DocumentRange> documents{};
};
const Case cases[] = {
    {12, 1, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 4}},
    {20, 33, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {3, 7}},
    {9, 104, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 15}, {0, 9}},
    {6, 1000, {.sequences = 2, .length = 9, .runs = {{3, 6}, {0, 0}}}, {0, 1}},
    {7,
     40,
     {.sequences = 2, .length = 3, .runs = {{0, 3}, {0, 0}}},
     {0, 3},
     {{0, 2}, {0, 2}, {2, 3}, {0, 1}, {1, 3}, {1, 3}}},
};

struct PoolCuda : CudaTest {};

template <class T>
void pooling_agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const DeviceArray<kernels::DocumentRange> documents(c.documents.empty() ? std::vector<kernels::DocumentRange>(1)
                                                                          : c.documents);
  kernels::PoolShape shape{c.rows, c.width, c.map, c.positions}, on_device = shape;
  if (!c.documents.empty()) {
    shape.documents = c.documents.data();
    on_device.documents = documents.data();
  }
  const std::vector<T> x = random_values<T>(c.rows * c.width, 1);
  const std::vector<T> dmeans = random_values<T>(c.map.sequences * c.width, 2);
  std::vector<float> means(dmeans.size());
  std::vector<T> dx(x.size());
  const DeviceArray<T> device_x(x, offset), device_dmeans(dmeans, offset), device_dx(x, offset);
  const DeviceArray<float> device_means(means, offset);
  pool_forward(Cpu{}, kernels::PoolForward<T>{shape, x.data(), means.data()});
  pool_forward(cuda, kernels::PoolForward<T>{on_device, device_x.data(), device_means.data()});
  expect_equal(device_means.host(), means, "means");
  pool_backward(Cpu{}, kernels::PoolBackward<T>{shape, dmeans.data(), dx.data()});
  pool_backward(cuda, kernels::PoolBackward<T>{on_device, device_dmeans.data(), device_dx.data()});
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
