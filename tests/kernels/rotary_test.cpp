// Rotary embedding against the rotation in double, and its inverse.
#include "kernels/rotary.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, length, heads, head_width, padding, first_position;
};
const Case cases[] = {
    {1, 1, 1, 2, 0, 0}, {6, 3, 2, 6, 1, 0}, {4, 4, 3, 34, 7, 5}, {5, 5, 1, 128, 0, 2}, {200, 100, 5, 64, 3, 0}};

template <class T>
class RotaryTest : public ::testing::Test {};
TYPED_TEST_SUITE(RotaryTest, ElementTypes);

TYPED_TEST(RotaryTest, IsARotationAndItsInverse) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const std::int64_t stride = c.heads * c.head_width + c.padding, half = c.head_width / 2;
    const RowMap map{.sequences = c.rows, .runs = {{c.first_position, c.first_position + c.length}, {0, 0}}};
    std::vector<A> table((c.first_position + c.length) * c.head_width);
    rotary_table(table.data(), c.first_position + c.length, c.head_width, 10000.0);
    const std::vector<T> x = random_values<T>(c.rows * stride, 1);
    for (const bool inverse : {false, true}) {
      std::vector<Result> expected;
      for (const T& value : x) expected.push_back({value, 0});
      for (std::int64_t row = 0; row < c.rows; ++row) {
        for (std::int64_t head = 0; head < c.heads; ++head) {
          for (std::int64_t i = 0; i < half; ++i) {
            const std::int64_t at = row * stride + head * c.head_width + i;
            const double a = x[at], b = x[at + half];
            const double frequency =
                std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(c.head_width));
            const double angle =
                static_cast<double>(c.first_position + row % c.length) * frequency * (inverse ? -1 : 1);
            expected[at] = {a * std::cos(angle) - b * std::sin(angle), std::abs(a) + std::abs(b)};
            expected[at + half] = {b * std::cos(angle) + a * std::sin(angle), std::abs(a) + std::abs(b)};
          }
        }
      }
      on_every_target([&](Cpu cpu) {
        std::vector<T> y = x;
        rotary(cpu, Rotary<T>{.x = y.data(),
                              .table = table.data(),
                              .rows = c.rows,
                              .heads = c.heads,
                              .head_width = c.head_width,
                              .stride = stride,
                              .map = map,
                              .inverse = inverse});
        expect_close(y.data(), expected, 4, inverse ? "inverse" : "rotation");
      });
    }
  }
}

TYPED_TEST(RotaryTest, GivenPositionsCountInsteadOfThoseOfTheMap) {
  using T = TypeParam;
  const std::int64_t rows = 7, width = 6;
  const RowMap map{.sequences = 1, .length = rows, .runs = {{0, rows}, {0, 0}}};
  std::vector<Accumulate<T>> table(rows * width);
  rotary_table(table.data(), rows, width, 10000.0);
  const std::vector<T> x = random_values<T>(rows * width, 1);
  const std::vector<std::int32_t> positions{0, 1, 2, 0, 1, 0, 1};
  on_every_target([&](Cpu cpu) {
    std::vector<T> y = x, expected = x;
    const auto turn = [&](T* data, std::int64_t count, const RowMap& by, const std::int32_t* given) {
      rotary(cpu, Rotary<T>{.x = data,
                            .table = table.data(),
                            .rows = count,
                            .heads = 1,
                            .head_width = width,
                            .stride = width,
                            .map = by,
                            .positions = given});
    };
    for (std::int64_t row = 0; row < rows; ++row)
      turn(expected.data() + row * width, 1, {.runs = {{positions[row], positions[row] + 1}, {0, 0}}}, nullptr);
    turn(y.data(), rows, map, positions.data());
    ASSERT_EQ(y, expected);
  });
}

// Squares in rows of 3 behind a class token, heads of 8: two pairs turn by the row and two by the column.
TEST(RotaryTable, TurnsBySquareOnAGrid) {
  std::vector<double> table(7 * 8);
  rotary_table(table.data(), 7, 8, 100.0, Grid{.rows = 2, .columns = 3, .first = 1});
  const double rows[] = {0, 1, 1, 1, 2, 2, 2}, columns[] = {0, 1, 2, 3, 1, 2, 3}, frequencies[] = {1, 0.1};
  for (std::size_t position = 0; position < 7; ++position)
    for (std::size_t i = 0; i < 4; ++i) {
      const double angle = (i < 2 ? rows : columns)[position] * frequencies[i % 2];
      EXPECT_DOUBLE_EQ(table[position * 8 + i], std::cos(angle)) << position << ' ' << i;
      EXPECT_DOUBLE_EQ(table[position * 8 + 4 + i], std::sin(angle)) << position << ' ' << i;
    }
}

}  // namespace
}  // namespace choir::kernels::tests
