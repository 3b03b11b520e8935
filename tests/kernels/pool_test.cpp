// Pooling: means over rows of each sequence, added in ascending order, and so exact; backward is their adjoint.
#include "kernels/pool.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  RowMap map;
  Run positions;
  std::vector<DocumentRange> documents{};  // of each position of each sequence

  PoolShape shape() const { return {rows, width, map, positions, documents.empty() ? nullptr : documents.data()}; }
};

/// Documents that end at these positions, for each sequence.
std::vector<DocumentRange> documents_until(const std::vector<std::vector<std::int32_t>>& ends) {
  std::vector<DocumentRange> documents;
  for (const std::vector<std::int32_t>& of_sequence : ends)
    for (std::int32_t begin = 0; const std::int32_t end : of_sequence) {
      documents.insert(documents.end(), static_cast<std::size_t>(end - begin), {begin, end});
      begin = end;
    }
  return documents;
}

// Whole sequences; two runs with a gap before, between and behind them; a block of their rows, with rows beyond them.
const Case cases[] = {
    {12, 1, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 4}},
    {12, 17, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 1}},
    {20, 33, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {0, 9}},
    {20, 5, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}}, {3, 7}},
    {9, 100, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 7}, {2, 8}},
    {9, 64, {.sequences = 4, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 15}, {0, 9}},
    {6, 3, {.sequences = 2, .length = 9, .runs = {{3, 6}, {0, 0}}}, {0, 1}},
    {12, 5, {.sequences = 3, .length = 4, .runs = {{0, 4}, {0, 0}}}, {0, 4}, documents_until({{4}, {1, 4}, {2, 3, 4}})},
    {9,
     17,
     {.sequences = 2, .length = 9, .runs = {{1, 4}, {6, 8}}, .first_row = 1},
     {0, 9},
     documents_until({{7, 9}, {3, 9}})},
    {8, 5, {.sequences = 2, .length = 9, .runs = {{1, 4}, {6, 8}}}, {2, 8}, documents_until({{2, 9}, {3, 9}})},
};

template <class T>
class PoolTest : public ::testing::Test {};
TYPED_TEST_SUITE(PoolTest, ElementTypes);

bool is_read(const Case& c, std::int64_t sequence, std::int64_t position) {
  const auto begin_at = [&](std::int64_t p) { return c.documents[sequence * c.map.length + p].begin; };
  return position >= c.positions.begin && position < c.positions.end &&
         (c.documents.empty() || begin_at(position) == begin_at(c.positions.begin));
}
/// By its definition: row by row.
bool is_read(const Case& c, std::int64_t row) {
  const RowMap::Place at = c.map.place(row);
  return c.map.first_row + row < c.map.sequences * c.map.positions() && is_read(c, at.sequence, at.position);
}
double factor_of(const Case& c, std::int64_t sequence) {
  std::int64_t count = 0;
  for (std::int64_t position = 0; position < c.map.length; ++position) count += is_read(c, sequence, position);
  return 1.0 / static_cast<double>(count);
}

TYPED_TEST(PoolTest, ForwardIsTheMeanOfRowsOfEachSequence) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const std::vector<T> x = random_values<T>(c.rows * c.width, 1);
    std::vector<A> expected(c.map.sequences * c.width);
    for (std::int64_t i = 0; i < c.rows * c.width; ++i)
      if (is_read(c, i / c.width))
        expected[c.map.place(i / c.width).sequence * c.width + i % c.width] += static_cast<A>(x[i]);
    for (std::int64_t i = 0; i < std::ssize(expected); ++i) expected[i] *= A(factor_of(c, i / c.width));
    on_every_target([&](Cpu cpu) {
      std::vector<A> means(expected.size(), A(7));
      pool_forward(cpu, PoolForward<T>{c.shape(), x.data(), means.data()});
      ASSERT_EQ(means, expected);
    });
  }
}

TYPED_TEST(PoolTest, BackwardSpreadsTheGradientOverThoseRows) {
  using T = TypeParam;
  for (const Case& c : cases) {
    const std::vector<T> dmeans = random_values<T>(c.map.sequences * c.width, 2);
    on_every_target([&](Cpu cpu) {
      std::vector<T> dx(c.rows * c.width, T(7));
      pool_backward(cpu, PoolBackward<T>{c.shape(), dmeans.data(), dx.data()});
      for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
        using A = Accumulate<T>;
        const std::int64_t sequence = c.map.place(i / c.width).sequence;
        A expected = 0;
        if (is_read(c, i / c.width))
          expected = static_cast<A>(dmeans[sequence * c.width + i % c.width]) * A(factor_of(c, sequence));
        ASSERT_EQ(double(dx[i]), double(T(expected))) << i;
      }
    });
  }
}

}  // namespace
}  // namespace choir::kernels::tests
