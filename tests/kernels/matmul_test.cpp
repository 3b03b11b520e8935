// The matrix product against loops in double precision, over ragged sizes, transposes, strides, bias and accumulation.
//
// Error model: the error of a sum of k products in any order, then bias, c and a rounding to Out, is at most
//   (k + 2) u_sum (sum |a||b| + |bias| + |c|) + u_out |result|,   u = half a unit in the last place of 1.
// Products of two bf16 are exact in f32. A new case is one more size in `sizes`.
#include "kernels/matmul.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cpu/team.h"

namespace choir::kernels {
namespace {

constexpr std::int64_t sizes[] = {1, 3, 17, 64, 129};

template <class T>
constexpr double unit_roundoff = std::is_same_v<T, double>  ? 0x1p-53
                                 : std::is_same_v<T, float> ? 0x1p-24
                                                            : 0x1p-8;

template <class T>
struct Matrix {
  std::int64_t rows, columns, stride;
  std::vector<T> values;

  /// Random in [-1, 1), rows `padding` elements longer than needed.
  Matrix(std::int64_t r, std::int64_t c, std::int64_t padding, std::mt19937& random)
      : rows(r), columns(c), stride(c + padding), values(static_cast<std::size_t>(r * stride)) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (T& value : values) value = T(static_cast<Accumulate<T>>(uniform(random)));
  }
  double at(std::int64_t i, std::int64_t j) const { return static_cast<double>(values[i * stride + j]); }
};

/// A product and its operands, which it owns.
template <class In, class Out>
struct Problem {
  std::mt19937 random;
  Matrix<In> a, b;
  Matrix<Out> c;
  Matrix<Out> bias;
  Matmul<In, Out> args;
  std::vector<float> workspace;

  Problem(std::int64_t m, std::int64_t n, std::int64_t k, bool transpose_a, bool transpose_b, bool with_bias,
          bool accumulate, std::int64_t padding)
      : random(static_cast<unsigned>(m + 1000 * n + 1000000 * k)),
        a(transpose_a ? k : m, transpose_a ? m : k, padding, random),
        b(transpose_b ? n : k, transpose_b ? k : n, padding, random),
        c(m, n, padding, random),
        bias(1, n, 0, random),
        args{.a = a.values.data(),
             .b = b.values.data(),
             .c = c.values.data(),
             .bias = with_bias ? bias.values.data() : nullptr,
             .m = m,
             .n = n,
             .k = k,
             .a_stride = a.stride,
             .b_stride = b.stride,
             .c_stride = c.stride,
             .transpose_a = transpose_a,
             .transpose_b = transpose_b,
             .accumulate = accumulate} {}

  void run(const Cpu& device) {
    workspace.resize(static_cast<std::size_t>(matmul_workspace_bytes(device, args)) / sizeof(float) + 16);
    void* start = workspace.data();
    std::size_t space = workspace.size() * sizeof(float);
    args.workspace = std::align(64, 1, start, space);
    matmul(device, args);
  }
};

template <class In, class Out>
void expect_right(Problem<In, Out>& problem, const Cpu& device) {
  const Matrix<Out> before = problem.c;
  problem.run(device);
  const auto& [random, a, b, c, bias, args, workspace] = problem;
  for (std::int64_t i = 0; i < args.m; ++i) {
    for (std::int64_t j = 0; j < args.n; ++j) {
      double sum = (args.bias ? bias.at(0, j) : 0) + (args.accumulate ? before.at(i, j) : 0);
      double magnitude = (args.bias ? std::abs(bias.at(0, j)) : 0) + (args.accumulate ? std::abs(before.at(i, j)) : 0);
      for (std::int64_t p = 0; p < args.k; ++p) {
        const double product =
            (args.transpose_a ? a.at(p, i) : a.at(i, p)) * (args.transpose_b ? b.at(j, p) : b.at(p, j));
        sum += product;
        magnitude += std::abs(product);
      }
      double tolerance = static_cast<double>(args.k + 2) * unit_roundoff<Accumulate<In>> * magnitude;
      if (std::is_same_v<In, double>) tolerance *= 2;  // the formula here rounds as often
      if (std::is_same_v<Out, bf16>) tolerance += unit_roundoff<bf16> * (std::abs(sum) + tolerance);
      ASSERT_NEAR(c.at(i, j), sum, tolerance) << "at " << i << ", " << j;
    }
    for (std::int64_t j = args.n; j < c.stride; ++j) ASSERT_EQ(c.at(i, j), before.at(i, j)) << "beyond row " << i;
  }
}

template <class Types>
struct MatmulTest : testing::Test {};
template <class I, class O>
struct Types {
  using In = I;
  using Out = O;
};
using AllTypes = testing::Types<Types<float, float>, Types<bf16, bf16>, Types<bf16, float>, Types<double, double>>;
TYPED_TEST_SUITE(MatmulTest, AllTypes);

TYPED_TEST(MatmulTest, EqualsTheFormula) {
  cpu::MatmulPlans plans;
  int turn = 0;  // distributes bias, accumulate, padding and threads over the sizes and transposes
  for (const std::int64_t m : sizes) {
    for (const std::int64_t n : sizes) {
      for (const std::int64_t k : sizes) {
        for (int flags = 0; flags < 4; ++flags, ++turn) {
          const bool transpose_a = flags & 1, transpose_b = flags & 2;
          const bool with_bias = turn % 3 == 0, accumulate = turn % 5 < 2;
          const std::int64_t padding = turn % 7 < 3 ? 5 : 0;
          SCOPED_TRACE("m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k) + " flags " +
                       std::to_string(flags) + " bias " + std::to_string(with_bias) + " accumulate " +
                       std::to_string(accumulate) + " padding " + std::to_string(padding));
          Problem<typename TypeParam::In, typename TypeParam::Out> problem(m, n, k, transpose_a, transpose_b, with_bias,
                                                                           accumulate, padding);
          expect_right(problem, Cpu{.threads = 1 + turn % 2, .plans = &plans});
          if (this->HasFatalFailure()) return;
        }
      }
    }
  }
}

TYPED_TEST(MatmulTest, EveryCombinationOfOptions) {
  cpu::MatmulPlans plans;
  for (int flags = 0; flags < 16; ++flags) {
    SCOPED_TRACE("flags " + std::to_string(flags));
    Problem<typename TypeParam::In, typename TypeParam::Out> problem(70, 33, 41, flags & 1, flags & 2, flags & 4,
                                                                     flags & 8, 3);
    expect_right(problem, Cpu{.threads = 2, .plans = &plans});
  }
}

// A stride of a dim of size 1 has no meaning, and a vector may have gaps: oneDNN must not confuse the two.
TYPED_TEST(MatmulTest, SizesOfOneWithEveryLayout) {
  cpu::MatmulPlans plans;
  const std::int64_t small[] = {1, 2, 3, 17};
  for (const std::int64_t m : small) {
    for (const std::int64_t n : small) {
      for (const std::int64_t k : small) {
        for (int flags = 0; flags < 32; ++flags) {
          const bool transpose_a = flags & 1, transpose_b = flags & 2, accumulate = flags & 4, with_bias = flags & 8;
          const std::int64_t padding = flags & 16 ? 5 : 0;
          SCOPED_TRACE("m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k) + " flags " +
                       std::to_string(flags));
          Problem<typename TypeParam::In, typename TypeParam::Out> problem(m, n, k, transpose_a, transpose_b, with_bias,
                                                                           accumulate, padding);
          expect_right(problem, Cpu{.threads = 1, .plans = &plans});
          if (this->HasFatalFailure()) return;
        }
      }
    }
  }
}

TYPED_TEST(MatmulTest, WithoutProductsLeavesBiasAndC) {
  cpu::MatmulPlans plans;
  for (int flags = 0; flags < 4; ++flags) {
    Problem<typename TypeParam::In, typename TypeParam::Out> problem(3, 5, 0, false, false, flags & 1, flags & 2, 1);
    expect_right(problem, Cpu{.plans = &plans});
  }
  Problem<typename TypeParam::In, typename TypeParam::Out> nothing(0, 5, 3, false, false, true, false, 1);
  expect_right(nothing, Cpu{.plans = &plans});
}

TYPED_TEST(MatmulTest, GivesTheSameBitsTwiceFromACachedPlan) {
  cpu::MatmulPlans plans;
  using Out = typename TypeParam::Out;
  Problem<typename TypeParam::In, Out> first(129, 65, 300, false, true, true, false, 0), second = first;
  second.args.a = second.a.values.data();  // other addresses, same plan
  second.args.b = second.b.values.data();
  second.args.c = second.c.values.data();
  second.args.bias = second.bias.values.data();
  first.run(Cpu{.threads = 2, .plans = &plans});
  second.run(Cpu{.threads = 2, .plans = &plans});
  EXPECT_EQ(std::memcmp(first.c.values.data(), second.c.values.data(), first.c.values.size() * sizeof(Out)), 0);
}

TYPED_TEST(MatmulTest, EqualSizesWithOtherStridesOrThreadsAreOtherPlans) {
  cpu::MatmulPlans plans;
  for (const std::int64_t padding : {0, 5, 2}) {
    for (const int threads : {1, 2}) {
      Problem<typename TypeParam::In, typename TypeParam::Out> problem(31, 20, 45, false, true, true, true, padding);
      expect_right(problem, Cpu{.threads = threads, .plans = &plans});
    }
  }
}

TYPED_TEST(MatmulTest, TheWorkspaceDoesNotDependOnPointers) {
  cpu::MatmulPlans plans;
  Problem<typename TypeParam::In, typename TypeParam::Out> problem(64, 64, 64, false, true, false, false, 0);
  auto without = problem.args;
  without.a = without.b = nullptr;
  without.c = nullptr;
  EXPECT_EQ(matmul_workspace_bytes(Cpu{.plans = &plans}, without),
            matmul_workspace_bytes(Cpu{.plans = &plans}, problem.args));
}

TYPED_TEST(MatmulTest, AnEpilogueOfTheLibraryIsAnError) {
  cpu::MatmulPlans plans;
  for (const Epilogue epilogue : {Epilogue::gelu, Epilogue::gelu_gradient, Epilogue::bias_gradient}) {
    Problem<typename TypeParam::In, typename TypeParam::Out> problem(8, 8, 8, false, false, false, false, 0);
    EXPECT_TRUE(matmul_fuses(Cpu{.plans = &plans}, problem.args));
    problem.args.epilogue = epilogue;
    EXPECT_FALSE(matmul_fuses(Cpu{.plans = &plans}, problem.args));
    try {
      matmul(Cpu{.plans = &plans}, problem.args);
      FAIL() << "an epilogue was accepted";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "matmul: on the CPU, only products in vectors and on tiles have epilogues");
    }
  }
}

TEST(Matmul, RestoresTheThreadCountOfTheCaller) {
  cpu::MatmulPlans plans;
  const int before = omp_get_max_threads();
  Problem<float, float> problem(64, 64, 64, false, false, false, false, 0);
  problem.run(Cpu{.threads = before + 1, .plans = &plans});
  EXPECT_EQ(omp_get_max_threads(), before);
}

// oneDNN would leave parts of its result unwritten.
TEST(Matmul, RefusesATeamThatCanBeSmallerThanPlanned) {
  cpu::MatmulPlans plans;
  Problem<float, float> problem(64, 64, 64, false, false, false, false, 0);
  const auto refused = [&] { EXPECT_THROW(problem.run(Cpu{.threads = 2, .plans = &plans}), std::runtime_error); };
  omp_set_dynamic(1);
  refused();
  omp_set_dynamic(0);
  omp_set_max_active_levels(0);
  refused();
  problem.run(Cpu{.threads = 1, .plans = &plans});
  EXPECT_EQ(cpu::settle_team(2), 2);
  problem.run(Cpu{.threads = 2, .plans = &plans});
}

TEST(Matmul, ErrorsNameTheShapeAndTheStatus) {
  cpu::MatmulPlans plans;
  Problem<float, float> problem(4, 5, 6, false, true, true, false, 0);
  problem.args.m = -4;
  try {
    matmul(Cpu{.plans = &plans}, problem.args);
    FAIL() << "a negative size was accepted";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(),
                 "matmul: oneDNN could not make the product: invalid_arguments; a [-4, 6] stride 6 f32, "
                 "transposed b [6, 5] stride 6 f32, c [-4, 5] stride 5 f32, bias, 1 threads");
  }
  EXPECT_THROW(matmul(Cpu{}, Problem<float, float>(1, 1, 1, false, false, false, false, 0).args), std::runtime_error);
}

}  // namespace
}  // namespace choir::kernels
