// Attention sinks against their formulas in double.
#include "kernels/attention_sink.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t batch, queries, heads, head_width;
};
const Case cases[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 40, 3, 64}, {3, 11, 2, 33}};

template <class T>
class AttentionSinkTest : public ::testing::Test {};
TYPED_TEST_SUITE(AttentionSinkTest, ElementTypes);

TYPED_TEST(AttentionSinkTest, JoinsTheSumOfTheSoftmax) {
  using T = TypeParam;
  using A = Accumulate<T>;
  constexpr A none = -std::numeric_limits<A>::infinity();
  for (const Case& c : cases) {
    const std::int64_t rows = c.batch * c.queries, items = rows * c.heads;
    const std::vector<T> start = random_values<T>(items * c.head_width, 1);
    const std::vector<T> dout = random_values<T>(items * c.head_width, 2);
    const std::vector<A> sinks = random_values<A>(c.heads, 3, 4);
    std::vector<A> lse = random_values<A>(items, 4, 4);  // [batch, heads, queries]
    for (std::int64_t i = 2; i < items; i += 5) lse[i] = none;
    std::vector<Result> expected(start.size());
    std::vector<double> expected_lse(items);
    for (std::int64_t item = 0; item < items; ++item) {  // [batch, queries, heads]
      const std::int64_t row = item / c.heads, head = item % c.heads;
      const std::int64_t at = (row / c.queries * c.heads + head) * c.queries + row % c.queries;
      const double keys = std::exp(double(lse[at])), sink = std::exp(double(sinks[head]));
      expected_lse[at] = std::log(keys + sink);
      for (std::int64_t i = item * c.head_width; i < (item + 1) * c.head_width; ++i)
        expected[i].add(lse[at] == none ? 0 : keys / (keys + sink) * double(start[i]));
    }
    on_every_target([&](Cpu cpu) {
      std::vector<T> out = start;
      std::vector<A> sums = lse;
      attention_sink(
          cpu, AttentionSink<T>{c.batch, c.queries, c.heads, c.head_width, sinks.data(), out.data(), sums.data()});
      expect_close(out.data(), expected, 30, "out");  // exp(lse - l) has the rounding of its argument
      for (std::int64_t i = 0; i < items; ++i)
        ASSERT_NEAR(double(sums[i]), expected_lse[i], 8 * half_ulp<A>() * (1 + std::abs(expected_lse[i])));

      std::vector<A> terms(items);
      attention_sink_gradient(cpu, AttentionSinkGradient<T>{c.batch, c.queries, c.heads, c.head_width, sinks.data(),
                                                            out.data(), dout.data(), sums.data(), terms.data()});
      std::vector<Result> expected_terms(items);
      for (std::int64_t item = 0; item < items; ++item) {
        const std::int64_t row = item / c.heads, head = item % c.heads;
        const std::int64_t at = (row / c.queries * c.heads + head) * c.queries + row % c.queries;
        for (std::int64_t i = item * c.head_width; i < (item + 1) * c.head_width; ++i)
          expected_terms[item].add(-std::exp(double(sinks[head]) - double(sums[at])) * double(out[i]) *
                                   double(dout[i]));
      }
      expect_close(terms.data(), expected_terms, 30 + static_cast<double>(c.head_width), "terms");
    });
  }
}

}  // namespace
}  // namespace choir::kernels::tests
