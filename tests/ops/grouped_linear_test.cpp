// A grouped product computes what its products compute one by one, to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"

namespace choir::tests {
namespace {

class GroupedLinear : public ::testing::TestWithParam<DType> {
 protected:
  Tensor random(const Shape& shape, DType type) {
    const Tensor exact = runtime.empty(shape, DType::f32), x = runtime.empty(shape, type);
    std::normal_distribution<float> normal;
    std::generate_n(exact.data<float>(), exact.count(), [&] { return normal(generator); });
    if (type == DType::f32) return exact;
    ops::narrow(runtime, exact, x);
    return x;
  }
  void expect_same(const Tensor& a, const Tensor& b, const char* what) {
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes())), 0) << what;
  }

  std::mt19937 generator{3};
  Device device{2};
  Runtime runtime{.device = device, .compute_type = GetParam()};
};

TEST_P(GroupedLinear, IsTheProductsOneByOne) {
  constexpr std::int64_t groups = 3, n = 17, in = 40, out = 24;
  const DType type = GetParam();
  const Tensor x = random({groups * n, in}, type), weight = random({groups * out, in}, type);
  const Tensor dy = random({groups * n, out}, type), dweight = random({groups * out, in}, DType::f32);
  const Tensor expected = runtime.empty({groups * out, in}, DType::f32);
  ops::copy(runtime, dweight, expected);
  const Tensor y = ops::grouped_linear(runtime, "test", x, weight, groups);
  const Tensor dx = ops::grouped_linear_input_gradient(runtime, "test", dy, weight, groups);
  ops::grouped_linear_weight_gradient(runtime, "test", dy, x, dweight, groups);
  for (std::int64_t g = 0; g < groups; ++g) {
    const auto rows = [&](const Tensor& of) {
      return of.slice_rows(g * of.rows() / groups, (g + 1) * of.rows() / groups);
    };
    expect_same(rows(y), ops::linear(runtime, "test", rows(x), rows(weight), {}, type), "y");
    expect_same(rows(dx), ops::linear_input_gradient(runtime, "test", rows(dy), rows(weight)), "dx");
    ops::linear_weight_gradient(runtime, "test", rows(dy), rows(x), rows(expected));
    expect_same(rows(dweight), rows(expected), "dweight");
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GroupedLinear, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace choir::tests
