// Pooling: sums over the rows of each sequence, in ascending order, and so exact; backward is their adjoint.
#include "kernels/pool.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  RowMap map;
  Run positions;
};
// Whole sequences; two runs with a gap before, between and behind them; a block of their rows, with rows beyond them.
const Case cases[] = {
    {12, 1, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 4}},
    {12, 17, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 1}},
    {20, 33, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {0, 9}},
    {20, 5, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {3, 7}},
    {9, 100, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 7}, {2, 8}},
    {9, 64, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 15}, {0, 9}},
    {6, 3, {.sequences = 2, .length = 9, .runs = {{3, 6}, {0, 0}}}, {0, 1}},
};

template <class T>
class PoolTest : public ::testing::Test {};
TYPED_TEST_SUITE(PoolTest, ElementTypes);

/// By its definition: row by row.
bool is_summed(const Case& c, std::int64_t row) {
  const std::int64_t position = c.map.position(row);
  return c.map.first_row + row < c.map.sequences * c.map.positions() && position >= c.positions.begin &&
         position < c.positions.end;
}

TYPED_TEST(PoolTest, ForwardAddsTheRowsOfEachSequence) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const std::vector<T> x = random_values<T>(c.rows * c.width, 1);
    std::vector<A> expected(c.map.sequences * c.width);
    for (std::int64_t i = 0; i < c.rows * c.width; ++i)
      if (is_summed(c, i / c.width))
        expected[c.map.place(i / c.width).sequence * c.width + i % c.width] += static_cast<A>(x[i]);
    for (A& value : expected) value *= A(0.25);
    on_every_target([&](Cpu cpu) {
      std::vector<A> sums(expected.size(), A(7));
      pool_forward(cpu, PoolForward<T>{{c.rows, c.width, c.map, c.positions, 0.25}, x.data(), sums.data()});
      ASSERT_EQ(sums, expected);
    });
  }
}

TYPED_TEST(PoolTest, BackwardSpreadsTheGradientOverThoseRows) {
  using T = TypeParam;
  for (const Case& c : cases) {
    const std::vector<T> dsums = random_values<T>(c.map.sequences * c.width, 2);
    on_every_target([&](Cpu cpu) {
      std::vector<T> dx(c.rows * c.width, T(7));
      pool_backward(cpu, PoolBackward<T>{{c.rows, c.width, c.map, c.positions, 0.5}, dsums.data(), dx.data()});
      for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
        const T of_sequence = dsums[c.map.place(i / c.width).sequence * c.width + i % c.width];
        ASSERT_EQ(double(dx[i]), is_summed(c, i / c.width) ? 0.5 * double(of_sequence) : 0) << i;
      }
    });
  }
}

}  // namespace
}  // namespace choir::kernels::tests
