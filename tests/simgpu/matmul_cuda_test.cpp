// Products on the simulated GPU: Choir's arguments to cuBLASLt, against loops in double. The error model is that of
// compare.h; the bias of a bf16 product is rounded to bf16 first (kernels/cuda/matmul.cpp).
//
// Epilogues: an error e of the sum becomes at most 1.13 e in gelu, 1.13 being its largest slope, and gelu'(before) e in
// its gradient; each step after the sum rounds once to f32.
#include <memory>

#include "kernels/matmul.h"
#include "tests/kernels/gelu.h"
#include "tests/simgpu/cublas_lt.h"
#include "tests/simgpu/device_array.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Accumulate;
using kernels::bf16;
using kernels::Epilogue;
using kernels::Matmul;
using kernels::tests::gelu;
using kernels::tests::gelu_gradient;
using kernels::tests::half_ulp;
using kernels::tests::random_values;
using kernels::tests::Result;
using kernels::tests::steepest_gelu;

struct Form {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b, bias, accumulate;
  std::int64_t padding, offset;  // elements behind each row, and before the first
};

class MatmulCuda : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    plans = std::make_unique<kernels::cuda::MatmulPlans>();
    workspace = std::make_unique<DeviceArray<std::uint8_t>>(std::int64_t{33} << 20);
  }
  void TearDown() override {
    refuse_epilogues(false);
    plans.reset();
    workspace.reset();
    CudaTest::TearDown();
  }
  kernels::Cuda device() const { return {.stream = stream, .matmul_plans = plans.get(), .multiprocessors = 4}; }

  template <class In, class Out>
  void check(const Form& f) {
    const std::int64_t a_rows = f.transpose_a ? f.k : f.m, a_stride = (f.transpose_a ? f.m : f.k) + f.padding;
    const std::int64_t b_rows = f.transpose_b ? f.n : f.k, b_stride = (f.transpose_b ? f.k : f.n) + f.padding;
    const std::int64_t c_stride = f.n + f.padding;
    const auto a = random_values<In>(a_rows * a_stride, 1), b = random_values<In>(b_rows * b_stride, 2);
    const auto c = random_values<Out>(f.m * c_stride, 3);
    const auto bias = random_values<Out>(f.n, 4);
    const DeviceArray<In> da(a, f.offset), db(b, f.offset);
    const DeviceArray<Out> dc(c, f.offset);
    const DeviceArray<Out> dbias(bias);
    Matmul<In, Out> args{.a = da.data(),
                         .b = db.data(),
                         .c = dc.data(),
                         .bias = f.bias ? dbias.data() : nullptr,
                         .m = f.m,
                         .n = f.n,
                         .k = f.k,
                         .a_stride = a_stride,
                         .b_stride = b_stride,
                         .c_stride = c_stride,
                         .transpose_a = f.transpose_a,
                         .transpose_b = f.transpose_b,
                         .accumulate = f.accumulate};
    ASSERT_LE(kernels::matmul_workspace_bytes(device(), args), std::int64_t{33} << 20);
    args.workspace = workspace->data();
    kernels::matmul(device(), args);
    const std::vector<Out> result = dc.host();
    for (std::int64_t i = 0; i < f.m; ++i)
      for (std::int64_t j = 0; j < c_stride; ++j) {
        const auto at = static_cast<std::size_t>(i * c_stride + j);
        if (j >= f.n) {  // between the rows nothing changes
          ASSERT_EQ(static_cast<float>(result[at]), static_cast<float>(c[at]));
          continue;
        }
        Result sum;
        for (std::int64_t p = 0; p < f.k; ++p)
          sum.add(
              static_cast<double>(a[static_cast<std::size_t>(f.transpose_a ? p * a_stride + i : i * a_stride + p)]) *
              static_cast<double>(b[static_cast<std::size_t>(f.transpose_b ? j * b_stride + p : p * b_stride + j)]));
        if (f.bias) sum.add(static_cast<double>(bias[static_cast<std::size_t>(j)]));
        if (f.accumulate) sum.add(static_cast<double>(c[at]));
        const double bound =
            half_ulp<Out>() * std::abs(sum.value) + static_cast<double>(f.k + 2) * half_ulp<float>() * sum.magnitude;
        // The rounding to Out happens after the other errors; its effect on them is of second order.
        ASSERT_NEAR(static_cast<double>(result[at]), sum.value, bound * (1 + 1e-2)) << i << ", " << j;
      }
  }

  /// Several products at once give what they give one by one.
  template <class In, class Out>
  void check_batch(const Form& f, std::int64_t batch) {
    const std::int64_t a_size = f.m * f.k, b_size = f.n * f.k, c_size = f.m * f.n;
    const DeviceArray<In> a(random_values<In>(batch * a_size, 1), f.offset);
    const DeviceArray<In> b(random_values<In>(batch * b_size, 2), f.offset);
    const auto c = random_values<Out>(batch * c_size, 3);
    const DeviceArray<Out> together(c, f.offset), one_by_one(c, f.offset);
    Matmul<In, Out> args{.a = a.data(),
                         .b = b.data(),
                         .c = together.data(),
                         .m = f.m,
                         .n = f.n,
                         .k = f.k,
                         .a_stride = f.transpose_a ? f.m : f.k,
                         .b_stride = f.transpose_b ? f.k : f.n,
                         .c_stride = f.n,
                         .transpose_a = f.transpose_a,
                         .transpose_b = f.transpose_b,
                         .accumulate = f.accumulate,
                         .batch = batch,
                         .a_batch_stride = a_size,
                         .b_batch_stride = b_size,
                         .c_batch_stride = c_size,
                         .workspace = workspace->data()};
    kernels::matmul(device(), args);
    for (std::int64_t i = 0; i < batch; ++i) {
      args.batch = 1;
      args.a_batch_stride = args.b_batch_stride = args.c_batch_stride = 0;
      args.a = a.data() + i * a_size;
      args.b = b.data() + i * b_size;
      args.c = one_by_one.data() + i * c_size;
      kernels::matmul(device(), args);
    }
    const std::vector<Out> all = together.host(), each = one_by_one.host();
    for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(static_cast<float>(all[i]), static_cast<float>(each[i]));
  }

  /// Rows of `before` are as long as the rules require, and 8 longer with padding.
  template <class In, class Out>
  void check_epilogue(const Form& f, Epilogue epilogue) {
    const std::int64_t a_rows = f.transpose_a ? f.k : f.m, a_stride = (f.transpose_a ? f.m : f.k) + f.padding;
    const std::int64_t b_rows = f.transpose_b ? f.n : f.k, b_stride = (f.transpose_b ? f.k : f.n) + f.padding;
    const std::int64_t c_stride = f.n + f.padding, before_stride = (f.n + 7) / 8 * 8 + (f.padding > 0 ? 8 : 0);
    const bool of_gelu = epilogue != Epilogue::bias_gradient;
    const auto a = random_values<In>(a_rows * a_stride, 1), b = random_values<In>(b_rows * b_stride, 2);
    const auto c = random_values<Out>(f.m * c_stride, 3), before = random_values<Out>(f.m * before_stride, 5);
    const auto bias = random_values<Out>(f.n, 4);
    const auto bias_gradient = random_values<float>(f.m, 6);
    const DeviceArray<In> da(a), db(b);
    const DeviceArray<Out> dc(c), dbefore(before);
    const DeviceArray<Out> dbias(bias);
    const DeviceArray<float> dbias_gradient(bias_gradient);
    Matmul<In, Out> args{.a = da.data(),
                         .b = db.data(),
                         .c = dc.data(),
                         .bias = f.bias ? dbias.data() : nullptr,
                         .m = f.m,
                         .n = f.n,
                         .k = f.k,
                         .a_stride = a_stride,
                         .b_stride = b_stride,
                         .c_stride = c_stride,
                         .transpose_a = f.transpose_a,
                         .transpose_b = f.transpose_b,
                         .accumulate = f.accumulate,
                         .epilogue = epilogue,
                         .before = of_gelu ? dbefore.data() : nullptr,
                         .before_stride = of_gelu ? before_stride : 0,
                         .bias_gradient = of_gelu ? nullptr : dbias_gradient.data()};
    ASSERT_TRUE(kernels::matmul_fuses(device(), args));
    ASSERT_LE(kernels::matmul_workspace_bytes(device(), args), std::int64_t{33} << 20);
    args.workspace = workspace->data();
    kernels::matmul(device(), args);

    const auto op_a = [&](std::int64_t i, std::int64_t p) {
      return static_cast<double>(a[static_cast<std::size_t>(f.transpose_a ? p * a_stride + i : i * a_stride + p)]);
    };
    const auto op_b = [&](std::int64_t p, std::int64_t j) {
      return static_cast<double>(b[static_cast<std::size_t>(f.transpose_b ? j * b_stride + p : p * b_stride + j)]);
    };
    const double roundings = static_cast<double>(f.k + 2) * half_ulp<float>();
    const std::vector<Out> result = dc.host(), before_result = dbefore.host();
    for (std::int64_t i = 0; i < f.m; ++i) {
      for (std::int64_t j = 0; j < f.n; ++j) {
        SCOPED_TRACE(std::to_string(i) + ", " + std::to_string(j));
        const auto at = static_cast<std::size_t>(i * c_stride + j);
        const auto before_at = static_cast<std::size_t>(i * before_stride + j);
        Result sum;
        for (std::int64_t p = 0; p < f.k; ++p) sum.add(op_a(i, p) * op_b(p, j));
        if (f.bias) sum.add(static_cast<double>(bias[static_cast<std::size_t>(j)]));
        if (f.accumulate) sum.add(static_cast<double>(c[at]));
        double error = roundings * sum.magnitude;
        double expected = sum.value, before_expected = sum.value, before_error = half_ulp<Out>() * std::abs(sum.value);
        if (epilogue == Epilogue::gelu) {
          expected = gelu(sum.value);
          before_error += error;
          error *= steepest_gelu;
        } else {
          before_expected = static_cast<double>(before[before_at]);  // only read
          before_error = 0;
        }
        if (epilogue == Epilogue::gelu_gradient) {
          const double slope = gelu_gradient(before_expected);
          expected *= slope;
          error *= std::abs(slope);
        }
        error += (half_ulp<Out>() + 2 * half_ulp<float>()) * std::abs(expected);
        ASSERT_NEAR(static_cast<double>(result[at]), expected, error * (1 + 1e-2));
        ASSERT_NEAR(static_cast<double>(before_result[before_at]), before_expected, before_error * (1 + 1e-2));
      }
      for (std::int64_t j = f.n; j < c_stride; ++j)  // between the rows nothing changes
        ASSERT_EQ(static_cast<float>(result[static_cast<std::size_t>(i * c_stride + j)]),
                  static_cast<float>(c[static_cast<std::size_t>(i * c_stride + j)]));
      for (std::int64_t j = f.n; j < before_stride; ++j)
        ASSERT_EQ(static_cast<float>(before_result[static_cast<std::size_t>(i * before_stride + j)]),
                  static_cast<float>(before[static_cast<std::size_t>(i * before_stride + j)]));
    }
    if (epilogue != Epilogue::bias_gradient) return;
    const std::vector<float> sums = dbias_gradient.host();
    for (std::int64_t i = 0; i < f.m; ++i) {
      Result sum;
      sum.add(bias_gradient[static_cast<std::size_t>(i)]);
      for (std::int64_t p = 0; p < f.k; ++p) sum.add(op_a(i, p));
      ASSERT_NEAR(sums[static_cast<std::size_t>(i)], sum.value, roundings * sum.magnitude) << "of the bias, " << i;
    }
  }

  template <class In, class Out>
  void check_all_epilogues() {
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 7, 3}, {33, 20, 17}, {8, 64, 40}})
          for (const auto& [epilogue, bias, accumulate] : {std::tuple{Epilogue::gelu, false, false},
                                                           {Epilogue::gelu, true, false},
                                                           {Epilogue::gelu_gradient, false, false},
                                                           {Epilogue::bias_gradient, false, false},
                                                           {Epilogue::bias_gradient, false, true}})
            for (const int padding : {0, 3}) {
              if (epilogue == Epilogue::bias_gradient && sizeof(Out) == 2) continue;  // never in bf16
              SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) +
                           (transpose_a ? ", a transposed" : "") + (transpose_b ? ", b transposed" : "") +
                           (bias ? ", bias" : "") + (accumulate ? ", accumulate" : "") + ", padding " +
                           std::to_string(padding) + ", epilogue " + std::to_string(static_cast<int>(epilogue)));
              check_epilogue<In, Out>({m, n, k, transpose_a, transpose_b, bias, accumulate, padding, 0}, epilogue);
              if (HasFatalFailure()) return;
            }
  }

  /// 8 x 8 x 8 at x, with gelu.
  Matmul<float, float> small_gelu(const DeviceArray<float>& x, const DeviceArray<float>& before) const {
    return {.a = x.data(),
            .b = x.data() + 64,
            .c = x.data() + 128,
            .m = 8,
            .n = 8,
            .k = 8,
            .a_stride = 8,
            .b_stride = 8,
            .c_stride = 8,
            .epilogue = Epilogue::gelu,
            .before = before.data(),
            .before_stride = 8,
            .workspace = workspace->data()};
  }

  template <class In, class Out>
  void check_all() {
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 7, 3}, {33, 20, 17}, {8, 64, 40}})
          for (const auto& [bias, accumulate] : {std::pair{false, false}, {true, false}, {false, true}})
            for (const auto& [padding, offset] : {std::pair{0, 0}, {3, 1}}) {
              SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) +
                           (transpose_a ? ", a transposed" : "") + (transpose_b ? ", b transposed" : "") +
                           (bias ? ", bias" : "") + (accumulate ? ", accumulate" : "") + ", padding " +
                           std::to_string(padding));
              check<In, Out>({m, n, k, transpose_a, transpose_b, bias, accumulate, padding, offset});
              if (HasFatalFailure()) return;
            }
  }

  std::unique_ptr<kernels::cuda::MatmulPlans> plans;
  std::unique_ptr<DeviceArray<std::uint8_t>> workspace;
};

TEST_P(MatmulCuda, BatchesAreTheProductsOneByOne) {
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true})
      for (const std::int64_t offset : {0, 1}) {
        const Form form{.m = 5,
                        .n = 7,
                        .k = 9,
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .bias = false,
                        .accumulate = transpose_a,
                        .padding = 0,
                        .offset = offset};
        check_batch<float, float>(form, 3);
        check_batch<bf16, bf16>(form, 3);
        check_batch<bf16, float>(form, 4);
      }
}

TEST_P(MatmulCuda, F32) { check_all<float, float>(); }
TEST_P(MatmulCuda, Bf16) { check_all<bf16, bf16>(); }
TEST_P(MatmulCuda, Bf16IntoF32) { check_all<bf16, float>(); }

TEST_P(MatmulCuda, EpiloguesInF32) { check_all_epilogues<float, float>(); }
TEST_P(MatmulCuda, EpiloguesInBf16) { check_all_epilogues<bf16, bf16>(); }
TEST_P(MatmulCuda, EpiloguesOfBf16IntoF32) { check_all_epilogues<bf16, float>(); }

TEST_P(MatmulCuda, SaysWhichEpiloguesItSupports) {
  const float bias[8] = {};
  for (const kernels::Cuda& asked : {device(), kernels::Cuda{}}) {  // with cuBLASLt and without
    const auto fuses = [&](auto change) {
      Matmul<float, float> args{.m = 8, .n = 8, .k = 8, .a_stride = 8, .b_stride = 8, .c_stride = 8};
      args.epilogue = Epilogue::gelu;
      args.before_stride = 8;
      change(args);
      return kernels::matmul_fuses(asked, args);
    };
    EXPECT_TRUE(fuses([](auto&) {}));
    EXPECT_TRUE(fuses([&](auto& args) { args.bias = bias; }));
    EXPECT_TRUE(fuses([](auto& args) { args.n = 7; }));
    EXPECT_FALSE(fuses([](auto& args) { args.n = args.before_stride = 7; })) << "a stride not divisible by 8";
    EXPECT_FALSE(fuses([](auto& args) { args.n = 9, args.c_stride = args.b_stride = 9; })) << "rows longer than it";
    EXPECT_FALSE(fuses([](auto& args) { args.accumulate = true; }));
    EXPECT_FALSE(fuses([](auto& args) { args.k = 0; }));
    EXPECT_TRUE(fuses([](auto& args) { args.epilogue = Epilogue::gelu_gradient; }));
    EXPECT_FALSE(fuses([&](auto& args) { args.epilogue = Epilogue::gelu_gradient, args.bias = bias; }));
    EXPECT_FALSE(fuses([](auto& args) { args.epilogue = Epilogue::bias_gradient; })) << "nothing is read or written";
    EXPECT_TRUE(fuses([](auto& args) { args.epilogue = Epilogue::bias_gradient, args.before_stride = 0; }));
    EXPECT_FALSE(
        fuses([&](auto& args) { args.epilogue = Epilogue::bias_gradient, args.before_stride = 0, args.bias = bias; }));
    EXPECT_TRUE(fuses([](auto& args) { args.epilogue = Epilogue::none, args.before_stride = 0; }));
    EXPECT_FALSE(kernels::matmul_fuses(
        asked,
        Matmul<bf16, bf16>{
            .m = 8, .n = 8, .k = 8, .a_stride = 8, .b_stride = 8, .c_stride = 8, .epilogue = Epilogue::bias_gradient}))
        << "a gradient in bf16";
  }
}

TEST_P(MatmulCuda, ARefusedEpilogueIsRemembered) {
  const DeviceArray<float> x(random_values<float>(192, 1)), before(std::int64_t{64});
  const Matmul<float, float> args = small_gelu(x, before);
  refuse_epilogues(true);
  const std::int64_t asked = heuristics_asked();
  EXPECT_FALSE(kernels::matmul_fuses(device(), args));
  refuse_epilogues(false);
  EXPECT_FALSE(kernels::matmul_fuses(device(), args));
  EXPECT_EQ(heuristics_asked(), asked + 1);
  try {
    kernels::matmul(device(), args);
    FAIL() << "a product that cuBLASLt has refused";
  } catch (const kernels::cuda::Failure& failure) {
    const std::string words = failure.what();
    EXPECT_NE(words.find("c [8, 8] stride 8 f32, gelu, before stride 8"), std::string::npos) << words;
    EXPECT_NE(words.find("CUBLAS_STATUS_NOT_SUPPORTED"), std::string::npos) << words;
  }
}

TEST_P(MatmulCuda, EpiloguesOutsideTheRulesAreRefused) {
  const DeviceArray<float> x(random_values<float>(192, 1)), before(std::int64_t{72}, 1);
  const auto words_of = [&](const Matmul<float, float>& args) {
    try {
      kernels::matmul(device(), args);
    } catch (const kernels::cuda::Failure& failure) {
      return std::string(failure.what());
    }
    return std::string("nothing thrown");
  };
  Matmul<float, float> args = small_gelu(x, before);
  EXPECT_NE(words_of(args).find("multiples of 16 bytes"), std::string::npos) << words_of(args);
  args.before_stride = 9;
  EXPECT_NE(words_of(args).find("the epilogue is not supported"), std::string::npos) << words_of(args);
}

TEST_P(MatmulCuda, NothingToDo) {
  const Matmul<float, float> args{.m = 0, .n = 4, .k = 4, .a_stride = 4, .b_stride = 4, .c_stride = 4};
  EXPECT_EQ(kernels::matmul_workspace_bytes(device(), args), 0);
  kernels::matmul(device(), args);
}

TEST_P(MatmulCuda, ARefusalNamesTheProduct) {
  const DeviceArray<float> x(std::vector<float>(16));
  Matmul<float, float> args{.a = x.data(), .b = x.data(), .c = x.data(), .m = 4, .n = 4, .k = 0};
  args.a_stride = args.b_stride = args.c_stride = 4;
  try {
    kernels::matmul(device(), args);
    FAIL() << "a product over nothing";
  } catch (const kernels::cuda::Failure& failure) {
    const std::string words = failure.what();
    EXPECT_NE(words.find("cublasLtMatmulAlgoGetHeuristic for a [4, 0] stride 4 f32"), std::string::npos) << words;
    EXPECT_NE(words.find("on GPU 0"), std::string::npos) << words;
    EXPECT_NE(words.find("CUBLAS_STATUS_INVALID_VALUE"), std::string::npos) << words;
  }
}

// A planted mistake: the leading dimension of another matrix. It is legal for cuBLASLt; the double finds the wrong
// accesses.
TEST_P(MatmulCuda, AWrongLeadingDimensionIsFound) {
  const DeviceArray<float> a(random_values<float>(8 * 8, 1)), b(random_values<float>(8 * 8, 2)), c(std::int64_t{64});
  kernels::matmul(device(), Matmul<float, float>{.a = a.data(),
                                                 .b = b.data(),
                                                 .c = c.data(),
                                                 .m = 8,
                                                 .n = 8,
                                                 .k = 8,
                                                 .a_stride = 12,
                                                 .b_stride = 8,
                                                 .c_stride = 8,
                                                 .workspace = workspace->data()});
  const std::vector<Finding> findings = take_findings();
  ASSERT_FALSE(findings.empty());
  EXPECT_EQ(findings[0].kind, "out of bounds");
  EXPECT_NE(findings[0].text.find("cublasLtMatmul"), std::string::npos) << findings[0].text;
}

// The same for the values before the activation: a stride of twice the real one.
TEST_P(MatmulCuda, AWrongLeadingDimensionBeforeTheActivationIsFound) {
  const DeviceArray<float> x(random_values<float>(192, 1)), before(random_values<float>(64, 2));
  for (const Epilogue epilogue : {Epilogue::gelu, Epilogue::gelu_gradient}) {
    Matmul<float, float> args = small_gelu(x, before);
    args.epilogue = epilogue;
    args.before_stride = 16;
    kernels::matmul(device(), args);
    const std::vector<Finding> findings = take_findings();
    ASSERT_FALSE(findings.empty());
    EXPECT_EQ(findings[0].kind, "out of bounds");
    EXPECT_NE(findings[0].text.find("cublasLtMatmul"), std::string::npos) << findings[0].text;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulCuda, ::testing::Values(80, 90, 100), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace choir::simgpu::tests
