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
    std::vector<T> logits = random_values<T>(c.rows * c.vocabulary, 1, 3);
    for (T& logit : logits) logit = static_cast<T>(static_cast<A>(logit) + static_cast<A>(c.shift));
    std::vector<std::int32_t> targets(c.rows);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      targets[row] = row % 4 == 3 ? -1 : static_cast<std::int32_t>(row * 911 % c.vocabulary);
    }

    double expected_loss = 0, loss_bound = 0, expected_right = 3;
    std::vector<double> expected(logits.size());
    std::vector<double> bound(logits.size());
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const std::vector<double> l(&logits[row * c.vocabulary], &logits[row * c.vocabulary] + c.vocabulary);
      const double max = *std::max_element(l.begin(), l.end());
      double sum = 0;
      for (const double logit : l) sum += std::exp(logit - max);
      if (targets[row] < 0) continue;
      if (l[targets[row]] == max) ++expected_right;
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
        std::vector<T> logits;
      };
      std::vector<Slice> slices;
      std::vector<A> statistics;
      for (std::size_t s = 0; s < c.first_tokens.size(); ++s) {
        const std::int64_t first = c.first_tokens[s];
        const std::int64_t end = s + 1 < c.first_tokens.size() ? c.first_tokens[s + 1] : c.vocabulary;
        Slice slice{first, end - first, (end - first + 7) / 8 * 8, {}};
        slice.logits.assign(c.rows * slice.stride, static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
        for (std::int64_t row = 0; row < c.rows; ++row) {
          std::copy_n(&logits[row * c.vocabulary] + first, slice.tokens, slice.logits.begin() + row * slice.stride);
        }
        std::vector<A> of_slice(3 * c.rows);
        cross_entropy_statistics(cpu, CrossEntropyStatistics<T>{slice.logits.data(), targets.data(), of_slice.data(),
                                                                c.rows, slice.tokens, slice.stride, slice.first});
        statistics.insert(statistics.end(), of_slice.begin(), of_slice.end());
        slices.push_back(std::move(slice));
      }
      for (Slice& slice : slices) {
        double loss = 0.25, right = 3;
        std::vector<double> losses(c.rows), losses_alone(c.rows), is_right(c.rows);
        kernels::CrossEntropy<T> args{.logits = slice.logits.data(),
                                      .statistics = statistics.data(),
                                      .slices = std::ssize(slices),
                                      .targets = targets.data(),
                                      .losses = losses_alone.data(),
                                      .right = is_right.data(),
                                      .rows = c.rows,
                                      .num_tokens = slice.tokens,
                                      .stride = slice.stride,
                                      .first_token = slice.first,
                                      .scale = scale,
                                      .gradient = false};
        cross_entropy(cpu, args);
        if (slices.size() == 1) args.statistics = nullptr;  // the kernel makes them
        args.right = nullptr;
        args.losses = losses.data();
        args.gradient = true;
        cross_entropy(cpu, args);
        ASSERT_EQ(losses, losses_alone);
        sum_of_losses(cpu, {losses.data(), c.rows, &loss});
        sum_of_losses(cpu, {is_right.data(), c.rows, &right});
        ASSERT_EQ(right, expected_right);
        ASSERT_NEAR(loss - 0.25, expected_loss, loss_bound + 1e-12);
        for (std::int64_t row = 0; row < c.rows; ++row) {
          for (std::int64_t j = 0; j < slice.stride; ++j) {
            const double actual = slice.logits[row * slice.stride + j];
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

/// Of a whole vocabulary: the sum of the losses.
template <class T>
double loss_of(Cpu cpu, std::vector<T>& logits, const std::vector<std::int32_t>& targets, bool gradient) {
  const std::int64_t rows = std::ssize(targets), vocabulary = std::ssize(logits) / rows;
  std::vector<double> losses(rows);
  cross_entropy(cpu, kernels::CrossEntropy<T>{.logits = logits.data(),
                                              .targets = targets.data(),
                                              .losses = losses.data(),
                                              .rows = rows,
                                              .num_tokens = vocabulary,
                                              .stride = vocabulary,
                                              .first_token = 0,
                                              .scale = 1,
                                              .gradient = gradient});
  double sum = 0;
  sum_of_losses(cpu, {losses.data(), rows, &sum});
  return sum;
}

TEST(CrossEntropyNaN, IsSeenInTheLoss) {
  on_every_target([&](Cpu cpu) {
    std::vector<float> logits(37, 1.0f);
    logits[20] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(loss_of(cpu, logits, {3}, true)));
  });
}

TEST(CrossEntropyGradientTest, AgreesWithFiniteDifferences) {
  const std::int64_t rows = 3, vocabulary = 17;
  std::vector<double> logits = random_values<double>(rows * vocabulary, 1, 2), dlogits = logits;
  const std::vector<std::int32_t> targets = {3, -1, 16};
  loss_of(Cpu{}, dlogits, targets, true);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    EXPECT_NEAR(dlogits[i], finite_difference(logits[i], [&] { return loss_of(Cpu{}, logits, targets, false); }),
                finite_difference_bound)
        << i;
  }
}

}  // namespace
}  // namespace choir::kernels::tests
