// Cross-entropy against log-sum-exp in double, whole and in uneven slices of the vocabulary that the test combines.
//
// The bounds: exp(l - max) has a relative error of u (|l - max| + 2), and the sum 4 sqrt(n) u more; this is the
// relative error of dlogits and the absolute error of the loss.
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, vocabulary;
  std::vector<std::int64_t> first_tokens;  // of the slices: 0, ...
  double shift;                            // added to all logits
};
const Case cases[] = {
    {1, 1, {0}, 0},           {5, 3, {0}, 0},       {4, 17, {0, 1, 9}, 1e4},      {3, 61, {0}, -1e4},
    {6, 100, {0, 50, 51}, 0}, {8, 1000, {0}, 3000}, {60, 1000, {0, 333, 700}, 0}, {7, 30, {0, 30, 30}, 0},
};

template <class T>
class CrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropy, ElementTypes);

TYPED_TEST(CrossEntropy, LossAndGradientAreTheirFormula) {
  using T = TypeParam;
  using A = Accumulate<T>;
  const double u = half_ulp<A>(), scale = 1.0 / 37;
  for (const Case& c : cases) {
    std::vector<A> logits = random_values<A>(c.rows * c.vocabulary, 1, 3);
    for (A& logit : logits) logit += static_cast<A>(c.shift);
    std::vector<std::int32_t> targets(c.rows);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      targets[row] = row % 4 == 3 ? -1 : static_cast<std::int32_t>(row * 911 % c.vocabulary);
    }

    double expected_loss = 0, loss_bound = 0;
    std::vector<double> expected(logits.size());
    std::vector<double> bound(logits.size());
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const A* l = logits.data() + row * c.vocabulary;
      const double max = *std::max_element(l, l + c.vocabulary);
      double sum = 0;
      for (std::int64_t j = 0; j < c.vocabulary; ++j) sum += std::exp(l[j] - max);
      if (targets[row] < 0) continue;
      expected_loss += std::log(sum) + max - l[targets[row]];
      const double roundings = 4 * std::sqrt(static_cast<double>(c.vocabulary)) + 40;  // |l - max| < 30
      loss_bound += roundings * u + 1e-15 * std::abs(c.shift);
      for (std::int64_t j = 0; j < c.vocabulary; ++j) {
        const double p = std::exp(l[j] - max) / sum, hit = j == targets[row];
        expected[row * c.vocabulary + j] = scale * (p - hit);
        bound[row * c.vocabulary + j] = half_ulp<T>() * scale * std::abs(p - hit) + roundings * u * scale * (p + hit);
      }
    }

    on_every_target([&](Cpu cpu) {
      // Each slice as a rank has it: padded rows, poison beyond num_tokens.
      struct Slice {
        std::int64_t first, tokens, stride;
        std::vector<A> logits, max, sum, target;
      };
      std::vector<Slice> slices;
      std::vector<A> max(c.rows, -std::numeric_limits<A>::infinity()), sum(c.rows), target(c.rows);
      for (std::size_t s = 0; s < c.first_tokens.size(); ++s) {
        const std::int64_t first = c.first_tokens[s];
        const std::int64_t end = s + 1 < c.first_tokens.size() ? c.first_tokens[s + 1] : c.vocabulary;
        Slice slice{first,
                    end - first,
                    (end - first + 7) / 8 * 8,
                    {},
                    std::vector<A>(c.rows),
                    std::vector<A>(c.rows),
                    std::vector<A>(c.rows)};
        slice.logits.assign(c.rows * slice.stride, std::numeric_limits<A>::quiet_NaN());
        for (std::int64_t row = 0; row < c.rows; ++row) {
          std::copy_n(&logits[row * c.vocabulary] + first, slice.tokens, slice.logits.begin() + row * slice.stride);
        }
        cross_entropy_max(
            cpu, CrossEntropyMax<A>{slice.logits.data(), slice.max.data(), c.rows, slice.tokens, slice.stride});
        for (std::int64_t row = 0; row < c.rows; ++row) max[row] = std::max(max[row], slice.max[row]);
        slices.push_back(std::move(slice));
      }
      for (Slice& slice : slices) {
        cross_entropy_sum(cpu,
                          CrossEntropySum<A>{slice.logits.data(), max.data(), targets.data(), slice.sum.data(),
                                             slice.target.data(), c.rows, slice.tokens, slice.stride, slice.first});
        for (std::int64_t row = 0; row < c.rows; ++row) {
          sum[row] += slice.sum[row];
          target[row] += slice.target[row];
        }
      }
      for (Slice& slice : slices) {
        double loss = 0.25, loss_alone = 0.25, right = 3;
        std::vector<T> separate(slice.logits.size(), T(7));
        CrossEntropyGradient<T> args{slice.logits.data(), max.data(),   sum.data(),  target.data(),
                                     targets.data(),      nullptr,      &loss_alone, c.rows,
                                     slice.tokens,        slice.stride, slice.first, scale};
        args.right = &right;
        cross_entropy_gradient(cpu, args);
        double expected_right = 3;
        for (std::int64_t row = 0; row < c.rows; ++row)
          if (targets[row] >= 0 && target[row] == max[row]) ++expected_right;
        ASSERT_EQ(right, expected_right);
        args.right = nullptr;
        args.loss_sum = &loss;
        args.dlogits = separate.data();
        cross_entropy_gradient(cpu, args);
        ASSERT_EQ(loss, loss_alone);
        ASSERT_NEAR(loss - 0.25, expected_loss, loss_bound + 1e-12);
        if constexpr (std::is_same_v<T, A>) {  // again, in place
          args.dlogits = slice.logits.data();
          cross_entropy_gradient(cpu, args);
          ASSERT_EQ(slice.logits, separate);
        }
        for (std::int64_t row = 0; row < c.rows; ++row) {
          for (std::int64_t j = 0; j < slice.stride; ++j) {
            const double actual = separate[row * slice.stride + j];
            if (j >= slice.tokens || targets[row] < 0) {
              ASSERT_EQ(actual, 0) << "padding, row " << row << ", column " << j;
            } else {
              const std::int64_t at = row * c.vocabulary + slice.first + j;
              ASSERT_NEAR(actual, expected[at], bound[at] + 1e-37) << "row " << row << ", column " << slice.first + j;
            }
          }
        }
      }
    });
  }
}

TEST(CrossEntropyNaN, IsSeenInTheLoss) {
  on_every_target([&](Cpu cpu) {
    std::vector<float> logits(37, 1.0f), max(1), sum(1), target(1);
    logits[20] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<std::int32_t> targets = {3};
    double loss = 0;
    cross_entropy_max(cpu, CrossEntropyMax<float>{logits.data(), max.data(), 1, 37, 37});
    cross_entropy_sum(cpu, CrossEntropySum<float>{logits.data(), max.data(), targets.data(), sum.data(), target.data(),
                                                  1, 37, 37, 0});
    cross_entropy_gradient(cpu, CrossEntropyGradient<float>{logits.data(), max.data(), sum.data(), target.data(),
                                                            targets.data(), nullptr, &loss, 1, 37, 37, 0, 1.0});
    EXPECT_TRUE(std::isnan(loss));
  });
}

TEST(CrossEntropyGradientTest, AgreesWithFiniteDifferences) {
  const std::int64_t rows = 3, vocabulary = 17;
  std::vector<double> logits = random_values<double>(rows * vocabulary, 1, 2);
  const std::vector<std::int32_t> targets = {3, -1, 16};
  std::vector<double> dlogits(logits.size());
  const auto loss = [&](double* gradient) {
    std::vector<double> work = logits, max(rows), sum(rows), target(rows);
    double total = 0;
    cross_entropy_max(Cpu{}, CrossEntropyMax<double>{work.data(), max.data(), rows, vocabulary, vocabulary});
    cross_entropy_sum(Cpu{}, CrossEntropySum<double>{work.data(), max.data(), targets.data(), sum.data(), target.data(),
                                                     rows, vocabulary, vocabulary, 0});
    cross_entropy_gradient(
        Cpu{}, CrossEntropyGradient<double>{work.data(), max.data(), sum.data(), target.data(), targets.data(),
                                            gradient, &total, rows, vocabulary, vocabulary, 0, 1.0});
    return total;
  };
  loss(dlogits.data());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    EXPECT_NEAR(dlogits[i], finite_difference(logits[i], [&] { return loss(nullptr); }), finite_difference_bound) << i;
  }
}

}  // namespace
}  // namespace choir::kernels::tests
