// Column sums and squared norms against sums in double.
#include "kernels/reduce.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width, padding;
};
const Case cases[] = {{1, 1, 0}, {3, 3, 2}, {17, 17, 0}, {6, 64, 0}, {7, 100, 5}, {1, 1000, 0}, {211, 1000, 3}};

template <class T>
class ColumnSumTest : public ::testing::Test {};
TYPED_TEST_SUITE(ColumnSumTest, ElementTypes);

TYPED_TEST(ColumnSumTest, AddsToWhatIsThere) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const std::int64_t stride = c.width + c.padding;
    const std::vector<T> x = random_values<T>(c.rows * stride, 1);
    std::vector<Result> expected(c.width, {3, 3});
    for (std::int64_t row = 0; row < c.rows; ++row) {
      for (std::int64_t i = 0; i < c.width; ++i) expected[i].add(x[row * stride + i]);
    }
    on_every_target([&](Cpu cpu) {
      std::vector<A> sum(c.width, A(3));
      std::vector<std::byte> workspace(column_sum_workspace_bytes<T>(cpu, c.rows, c.width));
      column_sum(cpu, ColumnSum<T>{x.data(), sum.data(), c.rows, c.width, stride, workspace.data()});
      expect_close(sum.data(), expected, 4 * std::sqrt(static_cast<double>(c.rows)) + 4, "sum");
    });
  }
}

TEST(SquaredNormTest, IsTheSumOverTheRangesWithTheSameBitsForAnyNumberOfThreads) {
  const std::vector<float> x = random_values<float>(300000, 1);
  const std::vector<std::vector<Range>> all = {
      {}, {{5, 6}}, {{0, 300000}}, {{0, 3}, {10, 27}, {27, 100}, {1000, 9192}, {20000, 299999}}, {{7, 7}}};
  for (const std::vector<Range>& ranges : all) {
    double expected = 0;
    for (const Range& range : ranges) {
      for (std::int64_t i = range.begin; i < range.end; ++i) expected += double{x[i]} * x[i];
    }
    on_every_target([&](Cpu cpu) {
      double sum = 7, alone = 7;
      squared_norm(cpu, SquaredNorm{x.data(), ranges.data(), static_cast<std::int64_t>(ranges.size()), &sum});
      squared_norm(Cpu{}, SquaredNorm{x.data(), ranges.data(), static_cast<std::int64_t>(ranges.size()), &alone});
      ASSERT_EQ(sum, alone);
      ASSERT_NEAR(sum, expected, 4 * std::sqrt(300000.0) * 0x1p-53 * expected);
    });
  }
}

}  // namespace
}  // namespace choir::kernels::tests
