// Matrix products of Choir, on tiles and in vectors, against sums in double precision of the same values, under the
// error model of matmul_test.cpp: at most (k + 2) u_sum (sum |a||b| + |bias| + |c|) + u_out |result|. A new case is one
// more line.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/tiles.h"
#include "tests/kernels/gelu.h"
#include "tests/kernels/tile_units.h"

namespace choir::kernels::tests {
namespace {

constexpr float untouched = 77;  // exact in bf16

struct Case {
  const char* name;
  std::int64_t m, n, k;
  bool transpose_a = false, transpose_b = false, bias = false, accumulate = false;
  std::int64_t gap = 0;
};

/// A product and its operands. Rows of c have `gap` more elements, and 64 are around c: none of them may change.
template <class In, class Out>
struct Problem {
  std::vector<In> a, b;
  std::vector<Out> bias;
  std::vector<Out> c;
  Matmul<In, Out> args;

  explicit Problem(const Case& s) {
    std::mt19937 random(static_cast<unsigned>(s.m + 1000 * s.n + 1000000 * s.k));
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto fill = [&](auto& values, std::int64_t count) {
      values.resize(static_cast<std::size_t>(count));
      for (auto& value : values) value = std::decay_t<decltype(value)>(uniform(random));
    };
    const std::int64_t a_rows = s.transpose_a ? s.k : s.m, a_columns = s.transpose_a ? s.m : s.k;
    const std::int64_t b_rows = s.transpose_b ? s.n : s.k, b_columns = s.transpose_b ? s.k : s.n;
    fill(a, a_rows * (a_columns + s.gap) - s.gap);
    fill(b, b_rows * (b_columns + s.gap) - s.gap);
    fill(bias, s.n);
    c.assign(static_cast<std::size_t>(128 + s.m * (s.n + s.gap)), Out(untouched));
    args = {.a = a.data(),
            .b = b.data(),
            .c = c.data() + 64,
            .bias = s.bias ? bias.data() : nullptr,
            .m = s.m,
            .n = s.n,
            .k = s.k,
            .a_stride = a_columns + s.gap,
            .b_stride = b_columns + s.gap,
            .c_stride = s.n + s.gap,
            .transpose_a = s.transpose_a,
            .transpose_b = s.transpose_b,
            .accumulate = s.accumulate};
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t j = 0; j < s.n; ++j) args.c[i * args.c_stride + j] = Out(uniform(random));
    }
  }

  /// Runs with a workspace full of NaN, and expects that nothing behind it is touched.
  void run(const ProductKernel<In, Out>& kernel, Cpu cpu) {
    const std::int64_t bytes = kernel.workspace_bytes(cpu, args);
    ASSERT_EQ(bytes % 64, 0);
    const std::shared_ptr<void> workspace(std::aligned_alloc(64, static_cast<std::size_t>(bytes + 64)), std::free);
    std::memset(workspace.get(), 0xff, static_cast<std::size_t>(bytes + 64));
    args.workspace = workspace.get();
    kernel.multiply(cpu, args);
    const auto* behind = static_cast<const unsigned char*>(workspace.get()) + bytes;
    for (int i = 0; i < 64; ++i) ASSERT_EQ(behind[i], 0xff) << "the workspace is too small";
  }

  double a_at(std::int64_t i, std::int64_t p) const {
    return args.transpose_a ? a[p * args.a_stride + i] : a[i * args.a_stride + p];
  }
  double b_at(std::int64_t p, std::int64_t j) const {
    return args.transpose_b ? b[j * args.b_stride + p] : b[p * args.b_stride + j];
  }

  /// `every`: of a large product, only each so many-th element is compared.
  void expect_right(const std::vector<Out>& before, std::int64_t every) const {
    std::int64_t turn = 0;
    for (std::int64_t i = 0; i < args.m; ++i) {
      for (std::int64_t j = 0; j < args.n; ++j) {
        if (turn++ % every != 0 && j + 1 < args.n && j != 0) continue;
        const std::int64_t at = 64 + i * args.c_stride + j;
        double sum =
            (args.bias ? static_cast<double>(bias[j]) : 0) + (args.accumulate ? static_cast<double>(before[at]) : 0);
        double magnitude = (args.bias ? std::abs(static_cast<double>(bias[j])) : 0) +
                           (args.accumulate ? std::abs(static_cast<double>(before[at])) : 0);
        for (std::int64_t p = 0; p < args.k; ++p) {
          const double product = a_at(i, p) * b_at(p, j);
          sum += product;
          magnitude += std::abs(product);
        }
        double tolerance = static_cast<double>(args.k + 2) * 0x1p-24 * magnitude;
        if (std::is_same_v<Out, bf16>) tolerance += 0x1p-8 * (std::abs(sum) + tolerance);
        ASSERT_NEAR(static_cast<double>(c[at]), sum, tolerance) << "at " << i << ", " << j;
      }
    }
    for (std::int64_t x = 0; x < std::ssize(c); ++x) {
      const std::int64_t inside = x - 64;
      if (inside < 0 || inside >= args.m * args.c_stride || inside % args.c_stride >= args.n) {
        ASSERT_EQ(static_cast<float>(c[x]), untouched) << "outside c, at " << inside;
      }
    }
  }
};

template <class In, class Out>
void expect_right(const ProductKernel<In, Out>& kernel, const Case& s, int threads, std::int64_t every = 1) {
  SCOPED_TRACE(std::string(s.name) + ": " + std::to_string(s.m) + " x " + std::to_string(s.n) + " x " +
               std::to_string(s.k) + ", transposes " + std::to_string(s.transpose_a) + std::to_string(s.transpose_b) +
               ", bias " + std::to_string(s.bias) + ", accumulate " + std::to_string(s.accumulate) + ", gap " +
               std::to_string(s.gap) + ", threads " + std::to_string(threads));
  Problem<In, Out> problem(s);
  const std::vector<Out> before = problem.c;
  ASSERT_NO_FATAL_FAILURE(problem.run(kernel, Cpu{.threads = threads}));
  problem.expect_right(before, every);
}

template <class In, class Out>
struct Types {
  using Kernel = ProductKernel<In, Out>;
  using Operands = Problem<In, Out>;
  using Arguments = Matmul<In, Out>;
  using Result = Out;
  template <class Body>
  static void on_every_unit(const Body& body) {
    on_every_product_unit<In, Out>(body);
  }
};
template <class Types>
struct PackedMatmul : testing::Test {};
using All = testing::Types<Types<bf16, bf16>, Types<bf16, float>, Types<float, float>>;
TYPED_TEST_SUITE(PackedMatmul, All);

TYPED_TEST(PackedMatmul, EqualsTheFormulaForRaggedSizes) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    const std::int64_t sizes[] = {1, 17, 32, 33, 70};
    int turn = 0;
    for (const std::int64_t m : sizes) {
      for (const std::int64_t n : sizes) {
        for (const std::int64_t k : {1, 2, 31, 32, 65}) {
          ++turn;
          for (int flags = 0; flags < 4; ++flags) {
            expect_right(kernel,
                         {.name = "ragged",
                          .m = m,
                          .n = n,
                          .k = k,
                          .transpose_a = (flags & 1) != 0,
                          .transpose_b = (flags & 2) != 0,
                          .bias = turn % 2 == 0,
                          .accumulate = turn % 3 == 0,
                          .gap = turn % 5 < 2 ? 3 : 0},
                         1 + turn % 3);
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  });
}

TYPED_TEST(PackedMatmul, EveryCombinationOfOptions) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    for (int flags = 0; flags < 32; ++flags) {
      expect_right(kernel,
                   {.name = "options",
                    .m = 70,
                    .n = 99,
                    .k = 41,
                    .transpose_a = (flags & 1) != 0,
                    .transpose_b = (flags & 2) != 0,
                    .bias = (flags & 4) != 0,
                    .accumulate = (flags & 8) != 0,
                    .gap = (flags & 16) != 0 ? 5 : 0},
                   2);
    }
  });
}

TYPED_TEST(PackedMatmul, EveryBlockingEqualsTheFormula) {
  const Case cases[] = {
      {"a vocabulary", 3, 9001, 40, false, true},
      {"its input gradient: a long sum in chunks", 33, 40, 9001},
      {"its weight gradient", 9001, 36, 5, true, false, false, true},
      {"two chunks", 65, 70, 1601, false, true, true},
      {"two chunks, accumulated", 65, 70, 2047, true, false, false, true, 1},
      {"more rows than keep their sums", 600, 33, 1537, false, false, true},
      {"several groups of columns and rows", 300, 800, 1400, false, true, true},
      {"three chunks of pairs", 40, 50, 4700, false, true, true},
      {"more rows than keep their sums of pairs", 530, 33, 2401, false, false, true},
      {"several groups of columns of words", 34, 1000, 1100, false, true, true},
      {"stores past the caches", 1024, 544, 32, false, true, true},
      {"one row", 1, 300, 300, false, true, true},
      {"one column", 300, 1, 300, false, true},
      {"a vector with gaps", 60, 1, 50, false, true, false, false, 7},
  };
  TypeParam::on_every_unit([&](const typename TypeParam::Kernel& kernel) {
    for (const Case& s : cases) {
      for (const int threads : {1, 4}) {
        expect_right(kernel, s, threads, s.m * s.n > 20000 ? 37 : 1);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  });
}

/// What the epilogue makes of a product, against its formula of what the product without one gives: the sums are the
/// same, so that only the roundings after them differ.
template <class In, class Out>
void expect_epilogue(const ProductKernel<In, Out>& kernel, const Case& s, Epilogue epilogue, int threads) {
  SCOPED_TRACE(std::string(s.name) + ", epilogue " + std::to_string(static_cast<int>(epilogue)));
  const double half = sizeof(Out) == 2 ? 0x1p-8 : 0x1p-24;
  Problem<In, Out> plain(s), with(s);
  std::vector<Out> before(static_cast<std::size_t>(s.m * (s.n + 3)), Out(untouched));
  if (epilogue == Epilogue::gelu_gradient)
    std::copy_n(with.c.begin(), before.size(), before.begin());  // any values in [-1, 1]
  const std::vector<Out> given = before;
  std::vector<float> bias_gradient(static_cast<std::size_t>(s.m), 0.5f);
  with.args.epilogue = epilogue;
  with.args.before = before.data();
  with.args.before_stride = s.n + 3;
  with.args.bias_gradient = bias_gradient.data();
  ASSERT_NO_FATAL_FAILURE(plain.run(kernel, Cpu{.threads = threads}));
  ASSERT_NO_FATAL_FAILURE(with.run(kernel, Cpu{.threads = threads}));
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      const auto sum = static_cast<double>(plain.args.c[i * plain.args.c_stride + j]);
      const auto result = static_cast<double>(with.args.c[i * with.args.c_stride + j]);
      const auto at = static_cast<std::size_t>(i * (s.n + 3) + j);
      double expected = sum, bound = 0;
      if (epilogue == Epilogue::gelu) {
        ASSERT_EQ(static_cast<double>(before[at]), sum);
        expected = gelu(sum);
        bound = steepest_gelu * half * std::abs(sum);
      } else if (epilogue == Epilogue::gelu_gradient) {
        ASSERT_EQ(static_cast<double>(before[at]), static_cast<double>(given[at]));
        const double slope = gelu_gradient(static_cast<double>(before[at]));
        expected = sum * slope;
        // The slope is a sum of two terms, neither over steepest_gelu, of some roundings each.
        bound = (half * std::abs(slope) + 8 * 0x1p-24 * steepest_gelu) * std::abs(sum);
      }
      bound += epilogue == Epilogue::bias_gradient ? 0 : (half + 8 * 0x1p-24) * std::abs(expected);
      ASSERT_NEAR(result, expected, bound) << i << ", " << j;
    }
    for (std::int64_t j = s.n; j < s.n + 3; ++j)
      ASSERT_EQ(static_cast<float>(before[static_cast<std::size_t>(i * (s.n + 3) + j)]),
                static_cast<float>(given[static_cast<std::size_t>(i * (s.n + 3) + j)]));
    if (epilogue != Epilogue::bias_gradient) continue;
    double total = 0.5, magnitude = 0.5;
    for (std::int64_t p = 0; p < s.k; ++p) {
      total += with.a_at(i, p);
      magnitude += std::abs(with.a_at(i, p));
    }
    ASSERT_NEAR(bias_gradient[static_cast<std::size_t>(i)], total, static_cast<double>(s.k + 2) * 0x1p-24 * magnitude);
  }
}

TYPED_TEST(PackedMatmul, EpiloguesEqualTheirFormulas) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    expect_epilogue(kernel, {"stores past the caches", 1024, 544, 32, false, true, true}, Epilogue::gelu, 4);
    for (const int threads : {1, 4}) {
      expect_epilogue(kernel, {"bias", 70, 99, 41, false, true, true}, Epilogue::gelu, threads);
      expect_epilogue(kernel, {"several chunks", 33, 50, 2500, false, true, true, false, 2}, Epilogue::gelu, threads);
      expect_epilogue(kernel, {"gradient", 40, 112, 64, false, false}, Epilogue::gelu_gradient, threads);
      expect_epilogue(kernel, {"several chunks", 33, 50, 2500, true, false}, Epilogue::gelu_gradient, threads);
      if (sizeof(typename TypeParam::Result) == 2) continue;
      expect_epilogue(kernel, {"rows", 70, 99, 41, true, false, false, true}, Epilogue::bias_gradient, threads);
      expect_epilogue(kernel, {"several chunks and groups", 45, 1000, 2500, true, false}, Epilogue::bias_gradient,
                      threads);
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

TYPED_TEST(PackedMatmul, BitsDoNotDependOnThreads) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    for (const Case& s : {Case{"two chunks", 200, 300, 1700, false, true, true}, Case{"rows", 700, 65, 70, true},
                          Case{"columns", 33, 900, 70, false, true, false, true, 3}}) {
      SCOPED_TRACE(s.name);
      typename TypeParam::Operands one(s);
      one.run(kernel, Cpu{.threads = 1});
      for (const int threads : {2, 3, 8}) {
        typename TypeParam::Operands many(s);
        many.run(kernel, Cpu{.threads = threads});
        EXPECT_EQ(std::memcmp(one.c.data(), many.c.data(), one.c.size() * sizeof(typename TypeParam::Result)), 0)
            << threads;
      }
    }
  });
}

TYPED_TEST(PackedMatmul, NotANumberStaysInItsRowAndColumn) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    typename TypeParam::Operands problem({"NaN", 40, 40, 33});
    problem.a[5 * 33 + 32] = bf16(std::numeric_limits<float>::quiet_NaN());
    problem.b[32 * 40 + 7] = bf16(std::numeric_limits<float>::infinity());
    problem.run(kernel, Cpu{});
    for (std::int64_t i = 0; i < 40; ++i) {
      for (std::int64_t j = 0; j < 40; ++j) {
        const auto value = static_cast<float>(problem.args.c[i * 40 + j]);
        EXPECT_EQ(std::isnan(value), i == 5) << i << ", " << j;
        EXPECT_EQ(std::isinf(value), i != 5 && j == 7) << i << ", " << j;
      }
    }
  });
}

TYPED_TEST(PackedMatmul, TheWorkspaceDependsOnSizesAndThreadsOnly) {
  TypeParam::on_every_unit([](const typename TypeParam::Kernel& kernel) {
    const typename TypeParam::Operands problem({"", 300, 200, 100, true, false, false, true, 3});
    const std::int64_t bytes = kernel.workspace_bytes(Cpu{.threads = 2}, problem.args);
    const typename TypeParam::Arguments other{.m = 300, .n = 200, .k = 100};
    EXPECT_EQ(kernel.workspace_bytes(Cpu{.threads = 2}, other), bytes);
  });
}

// What a processor must pass before it multiplies on tiles (kernels/tiles.h).
TEST(Tiles, AreExaminedByProductsOfIntegers) {
  static ProductKernel<bf16, float> kernel;
  on_every_product_unit<bf16, float>([](const ProductKernel<bf16, float>& right) {
    if (right.workspace_bytes != &cpu::tile_matmul_workspace_bytes<float>) return;
    kernel = right;
    EXPECT_TRUE(cpu::is_exact(kernel.multiply));
    EXPECT_FALSE(cpu::is_exact([](Cpu cpu, const Matmul<bf16, float>& args) {
      kernel.multiply(cpu, args);
      if (args.transpose_a && args.transpose_b) args.c[args.m * args.c_stride - 1] += 1;
    })) << "one sum of one product is wrong";
    EXPECT_FALSE(cpu::is_exact([](Cpu, const Matmul<bf16, float>&) {})) << "nothing is written";
  });
  EXPECT_EQ(cpu::has_tiles(), cpu::examine_tiles() == cpu::Tiles::right);
  EXPECT_STREQ(describe(cpu::Tiles::wrong), "the tiles of this processor have given wrong products of small integers");
}

}  // namespace
}  // namespace choir::kernels::tests
