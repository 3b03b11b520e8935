// Embeddings: copies are exact, gradients are sums over the rows that read a token or a position.
#include "kernels/embedding.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width, first_token, num_tokens, length, first_row;
};
const Case cases[] = {{1, 1, 0, 1, 1, 0},  {7, 3, 2, 5, 3, 2},    {40, 17, 0, 10, 8, 20},
                      {3, 64, 4, 3, 5, 0}, {12, 100, 3, 6, 4, 6}, {100, 1000, 5, 8, 50, 75}};

template <class T>
class EmbeddingTest : public ::testing::Test {
 public:
  void prepare(const Case& c) {
    ids.resize(c.rows);
    for (std::int64_t row = 0; row < c.rows; ++row) ids[row] = static_cast<std::int32_t>((row * 7 + row / 3) % 13);
    table = random_values<T>((c.num_tokens + c.length + 5) * c.width, 1);
    x = random_values<T>(c.rows * c.width, 2);
  }

  std::vector<std::int32_t> ids;
  std::vector<T> table, x;
};
TYPED_TEST_SUITE(EmbeddingTest, ElementTypes);

TYPED_TEST(EmbeddingTest, ForwardCopiesTheTokensHeldHere) {
  using T = TypeParam;
  for (const Case& c : cases) {
    this->prepare(c);
    on_every_target([&](Cpu cpu) {
      std::vector<T> y(c.rows * c.width, T(7));
      embedding_forward(cpu, EmbeddingForward<T>{this->ids.data(), this->table.data(), y.data(), c.rows, c.width,
                                                 c.first_token, c.num_tokens});
      for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
        const std::int64_t token = this->ids[i / c.width] - c.first_token;
        const bool held = token >= 0 && token < c.num_tokens;
        ASSERT_EQ(double(y[i]), held ? double(this->table[token * c.width + i % c.width]) : 0) << i;
      }
    });
  }
}

TYPED_TEST(EmbeddingTest, BackwardAddsTheRowsOfEachToken) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    this->prepare(c);
    // In ascending order of the rows, and so exact.
    std::vector<A> expected(c.num_tokens * c.width, A(1));
    for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
      const std::int64_t token = this->ids[i / c.width] - c.first_token;
      if (token >= 0 && token < c.num_tokens) expected[token * c.width + i % c.width] += static_cast<A>(this->x[i]);
    }
    on_every_target([&](Cpu cpu) {
      std::vector<A> dtable(expected.size(), A(1));
      embedding_backward(cpu, EmbeddingBackward<T>{this->ids.data(), this->x.data(), dtable.data(), c.rows, c.width,
                                                   c.first_token, c.num_tokens});
      ASSERT_EQ(dtable, expected);
    });
  }
}

TYPED_TEST(EmbeddingTest, PositionsAreAddedByTheirPlaceInTheSequence) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    this->prepare(c);
    // Two runs with a gap before, between and behind them.
    const RowMap map{.sequences = (c.first_row + c.rows) / (c.length + 2) + 1,
                     .length = c.length + 5,
                     .runs = {{1, c.length + 1}, {c.length + 2, c.length + 4}},
                     .first_row = c.first_row};
    std::vector<Result> expected;
    std::vector<A> expected_gradient(map.length * c.width, A(1));
    for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
      const std::int64_t position = map.position(i / c.width), column = i % c.width;
      Result sum;
      sum.add(this->x[i]);
      sum.add(this->table[position * c.width + column]);
      expected.push_back(sum);
      expected_gradient[position * c.width + column] += static_cast<A>(this->x[i]);
    }
    on_every_target([&](Cpu cpu) {
      std::vector<T> y = this->x;
      position_forward(
          cpu,
          PositionForward<T>{
              .x = y.data(), .table = this->table.data(), .y = y.data(), .rows = c.rows, .width = c.width, .map = map});
      expect_close(y.data(), expected, 1, "y");
      std::vector<A> dtable(expected_gradient.size(), A(1));
      position_backward(
          cpu, PositionBackward<T>{
                   .dy = this->x.data(), .dtable = dtable.data(), .rows = c.rows, .width = c.width, .map = map});
      ASSERT_EQ(dtable, expected_gradient);
    });
  }
}

TYPED_TEST(EmbeddingTest, GivenPositionsCountInsteadOfThoseOfTheMap) {
  using T = TypeParam;
  const std::vector<std::int32_t> positions{0, 1, 2, 0, 1, 0, 1};
  const std::int64_t rows = std::ssize(positions), width = 19;
  const RowMap map{.sequences = 1, .length = rows, .runs = {{0, rows}, {0, 0}}};
  const std::vector<T> start = random_values<T>(rows * width, 1), rows_of_table = random_values<T>(rows * width, 2);
  std::vector<Result> expected(start.size());
  for (std::int64_t i = 0; i < rows * width; ++i) {
    expected[i].add(start[i]);
    expected[i].add(rows_of_table[positions[i / width] * width + i % width]);
  }
  on_every_target([&](Cpu cpu) {
    std::vector<T> y = start;
    position_forward(cpu, PositionForward<T>{.x = start.data(),
                                             .table = rows_of_table.data(),
                                             .y = y.data(),
                                             .rows = rows,
                                             .width = width,
                                             .map = map,
                                             .positions = positions.data()});
    expect_close(y.data(), expected, 1, "y");
  });
}

}  // namespace
}  // namespace choir::kernels::tests
