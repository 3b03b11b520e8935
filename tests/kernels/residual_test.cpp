// The residual branch against its formula, with the mask of every element from the scalar Philox.
#include "kernels/residual.h"

#include "kernels/philox.h"
#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  bool x, bias;
  double p;
  RowMap rows_of_batch;
};
constexpr RowMap from(std::int64_t first_row) { return {.first_row = first_row}; }
const Case cases[] = {
    {1, 1, true, true, 0, {}},
    {5, 3, true, false, 0.5, {}},
    {1, 17, false, true, 0.1, from(3)},
    {4, 64, true, true, 0, {}},
    {3, 100, true, true, 0.9, from(7)},
    {2, 1000, false, false, 0.25, from(1)},
    {70, 1000, true, true, 0.1, from(5)},
    {9, 2500, true, true, 0.1, from(1 << 30)},
    {21,
     9,
     true,
     true,
     0.5,
     {.first_sample = 6, .sequences = 3, .length = 20, .runs = {{2, 5}, {13, 18}}, .first_row = 2}},
};

constexpr std::uint64_t key = 0x123456789abcdef, step = 77;

double factor(const Case& c, std::int64_t i) {
  if (c.p == 0) return 1;
  const auto index = static_cast<std::uint64_t>(c.rows_of_batch.global_row(i / c.width) * c.width + i % c.width);
  return philox_word(key, step, index) >= c.p * 4294967296.0 ? 1 / (1 - c.p) : 0;
}

template <class T>
class Residual : public ::testing::Test {};
TYPED_TEST_SUITE(Residual, ElementTypes);

TYPED_TEST(Residual, ForwardAndBackwardAreTheirFormulaWithOneMask) {
  using T = TypeParam;
  using A = Accumulate<T>;
  const StepScalars scalars{.step = step};
  for (const Case& c : cases) {
    const Dropout dropout{.p = c.p, .key = key, .scalars = c.p == 0 ? nullptr : &scalars, .rows = c.rows_of_batch};
    const std::vector<T> x = random_values<T>(c.rows * c.width, 1), delta = random_values<T>(c.rows * c.width, 2);
    const std::vector<A> bias = random_values<A>(c.width, 3);
    std::vector<Result> y, ddelta;
    for (std::int64_t i = 0; i < c.rows * c.width; ++i) {
      Result sum;
      sum.add(factor(c, i) * delta[i]);
      if (c.bias) sum.add(factor(c, i) * bias[i % c.width]);
      if (c.x) sum.add(x[i]);
      y.push_back(sum);
      const double gradient = factor(c, i) * delta[i];
      ddelta.push_back({gradient, std::abs(gradient)});
    }
    on_every_target([&](Cpu cpu) {
      std::vector<T> out = c.x ? x : delta;  // in place of either
      residual_forward(cpu, ResidualForward<T>{.x = c.x ? out.data() : nullptr,
                                               .delta = c.x ? delta.data() : out.data(),
                                               .bias = c.bias ? bias.data() : nullptr,
                                               .y = out.data(),
                                               .rows = c.rows,
                                               .width = c.width,
                                               .dropout = dropout});
      expect_close(out.data(), y, 4, "y");
      std::vector<T> slope = delta;
      residual_backward(
          cpu, ResidualBackward<T>{
                   .dy = slope.data(), .ddelta = slope.data(), .rows = c.rows, .width = c.width, .dropout = dropout});
      expect_close(slope.data(), ddelta, 2, "ddelta");
    });
  }
}

TEST(Dropout, KeepsTheRightShareAndMeanAndDiffersBetweenSteps) {
  const std::int64_t rows = 1000, width = 384;
  const double count = static_cast<double>(rows * width);
  const std::vector<float> ones(rows * width, 1.0f);
  for (const double p : {0.1, 0.5, 0.9}) {
    std::vector<float> y(ones.size()), next(ones.size());
    StepScalars scalars{.step = 1};
    const Dropout dropout{.p = p, .key = key, .scalars = &scalars};
    residual_forward(Cpu{}, ResidualForward<float>{
                                .delta = ones.data(), .y = y.data(), .rows = rows, .width = width, .dropout = dropout});
    scalars.step = 2;
    residual_forward(Cpu{},
                     ResidualForward<float>{
                         .delta = ones.data(), .y = next.data(), .rows = rows, .width = width, .dropout = dropout});
    double kept = 0, same = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      ASSERT_EQ(y[i], y[i] == 0 ? 0 : static_cast<float>(1 / (1 - p)));
      kept += y[i] != 0;
      same += (y[i] != 0) == (next[i] != 0);
    }
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(kept, count * (1 - p), 5 * std::sqrt(count * p * (1 - p)));
    const double agree = p * p + (1 - p) * (1 - p);
    EXPECT_NEAR(same, count * agree, 5 * std::sqrt(count * agree * (1 - agree)));
  }
}

TEST(Dropout, ThresholdRoundsUpAndStaysAWord) {
  static_assert(drop_below(0) == 0 && drop_below(0.5) == 0x80000000u && drop_below(0.1) == 429496730u);
  static_assert(drop_below(1.0) == 0xffffffffu);
}

}  // namespace
}  // namespace choir::kernels::tests
