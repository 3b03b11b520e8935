// Products on the simulated GPU: our arguments to cuBLASLt, against loops in double. The error model is compare.h's; a
// bias of a bf16 product is rounded to bf16 on its way (kernels/cuda/matmul.cpp).
#include <memory>

#include "kernels/matmul.h"
#include "tests/simgpu/device_array.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Accumulate;
using kernels::bf16;
using kernels::Matmul;
using kernels::tests::half_ulp;
using kernels::tests::random_values;
using kernels::tests::Result;

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
    const auto bias = random_values<float>(f.n, 4);
    const DeviceArray<In> da(a, f.offset), db(b, f.offset);
    const DeviceArray<Out> dc(c, f.offset);
    const DeviceArray<float> dbias(bias);
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
        double bound = 0;
        if (f.bias) {
          sum.add(bias[static_cast<std::size_t>(j)]);
          bound = sizeof(Out) == 2 ? half_ulp<bf16>() * std::abs(bias[static_cast<std::size_t>(j)]) : 0;
        }
        if (f.accumulate) sum.add(static_cast<double>(c[at]));
        bound +=
            half_ulp<Out>() * std::abs(sum.value) + static_cast<double>(f.k + 2) * half_ulp<float>() * sum.magnitude;
        // The rounding to Out happens after the other errors, whose share of it is of second order.
        ASSERT_NEAR(static_cast<double>(result[at]), sum.value, bound * (1 + 1e-2)) << i << ", " << j;
      }
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

TEST_P(MatmulCuda, F32) { check_all<float, float>(); }
TEST_P(MatmulCuda, Bf16) { check_all<bf16, bf16>(); }
TEST_P(MatmulCuda, Bf16IntoF32) { check_all<bf16, float>(); }

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

// A planted mistake: the leading dimension of another matrix. It is legal for cuBLASLt, and the double sees what it
// does.
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

INSTANTIATE_TEST_SUITE_P(Targets, MatmulCuda, ::testing::Values(80, 90, 100), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace choir::simgpu::tests
