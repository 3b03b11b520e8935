// The merge of two parts of attention against its formula in double.
#include "kernels/attention_merge.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t batch, queries, heads, head_width;
};
const Case cases[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 40, 3, 64}, {3, 11, 2, 33}};

template <class T>
class AttentionMergeTest : public ::testing::Test {};
TYPED_TEST_SUITE(AttentionMergeTest, ElementTypes);

TYPED_TEST(AttentionMergeTest, WeighsPartsByTheirKeys) {
  using T = TypeParam;
  using A = Accumulate<T>;
  constexpr A none = -std::numeric_limits<A>::infinity();
  for (const Case& c : cases) {
    const std::int64_t rows = c.batch * c.queries, count = rows * c.heads;
    const std::vector<T> part = random_values<T>(count * c.head_width, 1);
    std::vector<A> total = random_values<A>(count * c.head_width, 2);
    std::vector<A> part_lse = random_values<A>(count, 3, 4), total_lse = random_values<A>(count, 4, 4);
    for (std::int64_t i = 0; i < count; ++i) {  // in order [batch, head, query]
      if (i % 5 == 1) part_lse[i] = none;
      if (i % 3 == 1) total_lse[i] = none;
    }
    std::vector<Result> expected(total.size()), lse(count);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t head = 0; head < c.heads; ++head) {
        const std::int64_t at = (row / c.queries * c.heads + head) * c.queries + row % c.queries;
        const double a = std::exp(double(total_lse[at])), b = std::exp(double(part_lse[at]));
        lse[at] = {std::log(a + b), 1 + std::abs(std::log(a + b))};
        for (std::int64_t e = 0; e < c.head_width; ++e) {
          const std::int64_t i = (row * c.heads + head) * c.head_width + e;
          if (a == 0) total[i] = 0;
          if (a + b > 0) {
            // exp(lse - l) has the rounding of its argument, of up to 20
            expected[i].add(a / (a + b) * total[i]);
            expected[i].add(b / (a + b) * part[i]);
          }
        }
      }
    on_every_target([&](Cpu cpu) {
      std::vector<A> sum = total, sum_lse = total_lse;
      attention_merge(cpu, AttentionMerge<T>{c.batch, c.queries, c.heads, c.head_width, part.data(), part_lse.data(),
                                             sum.data(), sum_lse.data()});
      expect_close(sum.data(), expected, 30, "total");
      for (std::int64_t i = 0; i < count; ++i) {
        if (part_lse[i] == none && total_lse[i] == none)
          ASSERT_EQ(sum_lse[i], none);
        else
          ASSERT_NEAR(double(sum_lse[i]), lse[i].value, 8 * half_ulp<A>() * lse[i].magnitude);
      }
    });
  }
}

}  // namespace
}  // namespace choir::kernels::tests
