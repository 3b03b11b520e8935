// Numbers of 8 bits on the simulated GPU: scales and codes have the CPU's bits, products are the CPU's but for their
// sums. Hopper's tensor cores keep about 14 bits of the terms of 8 bits that they add at once (DeepSeek-AI 2024, arXiv
// 2412.19437, section 3.3.2): each of k terms may be off by 2^-13 of the largest, which is 2^11 roundings of f32 of the
// sum of their sizes.
#include <memory>

#include "kernels/fp8.h"
#include "kernels/matmul.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::codes_of;
using kernels::Quantise;
using kernels::ScaledMatmul;
using kernels::ScaleExponents;

struct Fp8Cuda : CudaTest {
  void SetUp() override {
    CudaTest::SetUp();
    plans = std::make_unique<kernels::cuda::MatmulPlans>();
  }
  void TearDown() override {
    plans.reset();
    CudaTest::TearDown();
  }
  kernels::Cuda device() const { return {.stream = stream, .matmul_plans = plans.get(), .multiprocessors = 4}; }
  std::unique_ptr<kernels::cuda::MatmulPlans> plans;
};

void expect_equal_bytes(const std::vector<std::uint8_t>& of_cuda, const std::vector<std::uint8_t>& of_cpu,
                        const char* what) {
  ASSERT_EQ(of_cuda.size(), of_cpu.size());
  for (std::size_t i = 0; i < of_cuda.size(); ++i) ASSERT_EQ(of_cuda[i], of_cpu[i]) << what << " [" << i << "]";
}

TEST_P(Fp8Cuda, ScalesAndCodesHaveTheBitsOfTheCpu) {
  struct Case {
    std::int64_t rows, width, stride, offset;
  };
  // The last but one has several parts of rows, the last rows of several loads for each lane.
  for (const Case& c : {Case{1, 1, 1, 0}, Case{6, 5, 7, 0}, Case{17, 8, 8, 0}, Case{3, 24, 32, 0}, Case{9, 24, 32, 1},
                        Case{300, 70, 72, 0}, Case{70, 520, 520, 0}}) {
    std::vector<bf16> x = random_values<bf16>(c.rows * c.stride, 1);
    for (std::int64_t i = 0; i < c.stride; ++i) x[i] = bf16(0.0f);
    if (c.rows > 2) {
      x[c.stride].bits = 0x7fc0;
      x[2 * c.stride].bits = 1;
    }
    const DeviceArray<bf16> device_x(x, c.offset);
    for (const bool by_columns : {false, true}) {
      SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width) +
                   (by_columns ? " by columns" : " by rows"));
      const std::int64_t count = by_columns ? c.width : c.rows;
      const std::int64_t codes_count = count * codes_of(by_columns ? c.rows : c.width);
      std::vector<std::uint8_t> exponents(count), codes(codes_count);
      std::vector<float> scales(count);
      scale_exponents(Cpu{}, ScaleExponents{x.data(), c.rows, c.width, c.stride, by_columns, exponents.data()});
      quantise(Cpu{}, Quantise{x.data(), c.rows, c.width, c.stride, by_columns, exponents.data(), codes.data(),
                               scales.data()});
      const DeviceArray<std::uint8_t> device_exponents(count, 1), device_codes(codes_count);
      const DeviceArray<float> device_scales(count);
      ScaleExponents of_exponents{device_x.data(), c.rows, c.width, c.stride, by_columns, device_exponents.data()};
      const DeviceArray<std::uint8_t> workspace(kernels::scale_exponents_workspace_bytes(device(), of_exponents));
      of_exponents.workspace = workspace.data();
      scale_exponents(device(), of_exponents);
      quantise(device(), Quantise{device_x.data(), c.rows, c.width, c.stride, by_columns, device_exponents.data(),
                                  device_codes.data(), device_scales.data()});
      if (!by_columns) {
        const DeviceArray<std::uint8_t> own_codes(codes_count);
        const DeviceArray<float> own_scales(count);
        quantise(device(), Quantise{device_x.data(), c.rows, c.width, c.stride, false, nullptr, own_codes.data(),
                                    own_scales.data()});
        expect_equal_bytes(own_codes.host(), codes, "code with its own exponent");
        expect_equal(own_scales.host(), scales, "own scale");
      }
      expect_equal_bytes(device_exponents.host(), exponents, "exponent");
      expect_equal_bytes(device_codes.host(), codes, "code");
      expect_equal(device_scales.host(), scales, "scale");
      if (HasFatalFailure()) return;
    }
  }
}

/// Random codes without NaN, and scales.
struct Factor {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  Factor(std::int64_t rows, std::int64_t k, unsigned seed) : codes(rows * k), scales(rows) {
    std::mt19937 generator(seed);
    for (std::uint8_t& code : codes) {
      code = static_cast<std::uint8_t>(generator());
      if ((code & 0x7f) == kernels::e4m3_nan) code = 0;
    }
    for (float& scale : scales) scale = std::ldexp(1.0f, static_cast<int>(generator() % 20) - 10);
  }
};

struct Product {
  Factor a, b;
  std::vector<bf16> bias;
  std::int64_t m, n, k;
  Product(std::int64_t rows, std::int64_t columns, std::int64_t summed)
      : a(rows, summed, 1),
        b(columns, summed, 2),
        bias(random_values<bf16>(columns, 3)),
        m(rows),
        n(columns),
        k(summed) {}

  ScaledMatmul args(const std::uint8_t* a_codes, const std::uint8_t* b_codes, const float* a_scales,
                    const float* b_scales, bf16* c, const bf16* of_bias) const {
    return {.a = a_codes,
            .b = b_codes,
            .a_scales = a_scales,
            .b_scales = b_scales,
            .c = c,
            .bias = of_bias,
            .m = m,
            .n = n,
            .k = k};
  }
  std::vector<bf16> on_cpu(bool with_bias) const {
    std::vector<bf16> c(m * n);
    ScaledMatmul product = args(a.codes.data(), b.codes.data(), a.scales.data(), b.scales.data(), c.data(),
                                with_bias ? bias.data() : nullptr);
    kernels::cpu::MatmulPlans plans;
    const Cpu cpu{.plans = &plans};
    std::vector<char> workspace(kernels::scaled_matmul_workspace_bytes(cpu, product) + 64);
    product.workspace = workspace.data() + 64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64;
    scaled_matmul(cpu, product);
    return c;
  }
  std::vector<bf16> on(const kernels::Cuda& gpu, bool with_bias) const {
    const DeviceArray<std::uint8_t> a_codes(a.codes), b_codes(b.codes);
    const DeviceArray<float> a_scales(a.scales), b_scales(b.scales);
    const DeviceArray<bf16> c(m * n), of_bias(bias);
    ScaledMatmul product = args(a_codes.data(), b_codes.data(), a_scales.data(), b_scales.data(), c.data(),
                                with_bias ? of_bias.data() : nullptr);
    const DeviceArray<std::uint8_t> workspace(kernels::scaled_matmul_workspace_bytes(gpu, product));
    product.workspace = workspace.data();
    scaled_matmul(gpu, product);
    return c.host();
  }
  std::vector<double> magnitude() const {
    std::vector<double> sums(m * n);
    const auto size = [](std::uint8_t code) { return std::abs(static_cast<double>(kernels::value_of_e4m3(code))); };
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::int64_t p = 0; p < k; ++p) sum += size(a.codes[i * k + p]) * size(b.codes[j * k + p]);
        sums[i * n + j] = sum * static_cast<double>(a.scales[i]) * static_cast<double>(b.scales[j]) +
                          std::abs(static_cast<double>(bias[j]));
      }
    return sums;
  }
};

TEST_P(Fp8Cuda, ProductsAgreeWithTheCpu) {
  // 24 outputs are no multiple of 16: what the codes stand for is multiplied in bf16, on a GPU of any generation.
  for (const Product& product : {Product(13, 24, 32), Product(1, 8, 16), Product(13, 32, 48), Product(33, 16, 16)}) {
    const bool multiplies_codes = product.n % 16 == 0;
    if (multiplies_codes && GetParam() != 90) continue;
    for (const bool with_bias : {false, true}) {
      SCOPED_TRACE(std::to_string(product.n) + (with_bias ? " with bias" : ""));
      expect_agreement(product.on(device(), with_bias), product.on_cpu(with_bias), product.magnitude(),
                       multiplies_codes ? 0x1p11 * static_cast<double>(product.k) : roundings_of_sum(product.k),
                       "product");
    }
  }
}

TEST_P(Fp8Cuda, ARefusalNamesTheProduct) {
  if (GetParam() != 80) return;
  try {
    Product(13, 32, 48).on(device(), true);
    FAIL() << "a product of 8 bits on a GPU that has none";
  } catch (const kernels::cuda::Failure& failure) {
    const std::string words = failure.what();
    EXPECT_NE(
        words.find("a [13, 48] stride 48 e4m3, transposed b [48, 32] stride 48 e4m3, c [13, 32] stride 32 bf16, bias"),
        std::string::npos)
        << words;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, Fp8Cuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
