// Embeddings on the GPU against the CPU: the same bits, since every sum is in ascending order of the rows.
#include "kernels/embedding.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t rows, width, first_token, num_tokens, length, first_row;
};
// Rows of the same token among 1024 rows, and in several thousands; the last has more rows of one token than a list.
const Case cases[] = {{1, 1, 0, 1, 1, 0},      {7, 3, 2, 5, 3, 2},      {40, 17, 0, 10, 8, 20},
                      {3, 64, 4, 3, 5, 0},     {12, 104, 3, 6, 4, 6},   {60, 1000, 5, 8, 50, 75},
                      {2500, 8, 3, 6, 100, 7}, {13400, 2, 3, 2, 100, 7}};

struct EmbeddingCuda : CudaTest {};

std::vector<std::int32_t> ids_of(const Case& c) {
  std::vector<std::int32_t> ids(c.rows);
  for (std::int64_t row = 0; row < c.rows; ++row) ids[row] = static_cast<std::int32_t>((row * 7 + row / 3) % 13);
  return ids;
}

template <class T>
void tokens_agree(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::vector<std::int32_t> ids = ids_of(c);
  const std::vector<T> table = random_values<T>(c.num_tokens * c.width, 1), dy = random_values<T>(c.rows * c.width, 2);
  std::vector<T> y(dy.size());
  std::vector<float> dtable = random_values<float>(c.num_tokens * c.width, 3);
  const DeviceArray<std::int32_t> device_ids(ids);
  const DeviceArray<T> device_table(table, offset), device_dy(dy, offset), device_y(c.rows * c.width, offset);
  const DeviceArray<float> device_dtable(dtable, offset);
  embedding_forward(Cpu{}, kernels::EmbeddingForward<T>{ids.data(), table.data(), y.data(), c.rows, c.width,
                                                        c.first_token, c.num_tokens});
  embedding_forward(cuda, kernels::EmbeddingForward<T>{device_ids.data(), device_table.data(), device_y.data(), c.rows,
                                                       c.width, c.first_token, c.num_tokens});
  expect_equal(device_y.host(), y, "y");
  embedding_backward(Cpu{}, kernels::EmbeddingBackward<T>{ids.data(), dy.data(), dtable.data(), c.rows, c.width,
                                                          c.first_token, c.num_tokens});
  embedding_backward(cuda, kernels::EmbeddingBackward<T>{device_ids.data(), device_dy.data(), device_dtable.data(),
                                                         c.rows, c.width, c.first_token, c.num_tokens});
  expect_equal(device_dtable.host(), dtable, "dtable");
}

TEST_P(EmbeddingCuda, TokensAgreeWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { tokens_agree<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

template <class T>
void positions_agree(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const kernels::RowMap map{.sequences = (c.first_row + c.rows) / (c.length + 2) + 1,
                            .length = c.length + 5,
                            .runs = {{1, c.length + 1}, {c.length + 2, c.length + 4}},
                            .first_row = c.first_row};
  const std::vector<T> table = random_values<T>(map.length * c.width, 1);
  const std::vector<T> x = random_values<T>(c.rows * c.width, 2);
  std::vector<T> y(x.size());
  std::vector<float> dtable = random_values<float>(map.length * c.width, 3);
  const DeviceArray<T> device_table(table, offset), device_x(x, offset), device_y(x, offset);
  const DeviceArray<float> device_dtable(dtable, offset);
  position_forward(Cpu{}, kernels::PositionForward<T>{x.data(), table.data(), y.data(), c.rows, c.width, map});
  position_forward(cuda, kernels::PositionForward<T>{device_y.data(), device_table.data(), device_y.data(), c.rows,
                                                     c.width, map});  // in place
  expect_equal(device_y.host(), y, "y");
  position_backward(Cpu{}, kernels::PositionBackward<T>{x.data(), dtable.data(), c.rows, c.width, map});
  position_backward(cuda, kernels::PositionBackward<T>{device_x.data(), device_dtable.data(), c.rows, c.width, map});
  expect_equal(device_dtable.host(), dtable, "dtable");
}

TEST_P(EmbeddingCuda, PositionsAgreeWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { positions_agree<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, EmbeddingCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
