// Numbers of 8 bits: every code, every rounding between two neighbours, every scale, and the kernels against formulas.
#include "kernels/fp8.h"

#include <array>
#include <cmath>

#include "kernels/matmul.h"
#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

/// The definition: (-1)^sign 2^(exponent - 7) (1 + mantissa / 8), and multiples of 2^-9 if the exponent is 0.
double defined_value(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double size = exponent == 0 ? mantissa * 0x1p-9 : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code & 0x80 ? -size : size;
}

/// By trying all codes: the nearest, and of two that are equally near the one with an even mantissa.
std::uint8_t nearest_code(float value) {
  const int sign = std::signbit(value) ? 0x80 : 0;
  if (!std::isfinite(value)) return static_cast<std::uint8_t>(sign | e4m3_nan);
  int nearest = 0;
  const double size = std::abs(static_cast<double>(value));
  for (int code = 1; code <= e4m3_largest; ++code) {
    const double here = std::abs(defined_value(code) - size), best = std::abs(defined_value(nearest) - size);
    if (here < best || (here == best && code % 2 == 0)) nearest = code;
  }
  return static_cast<std::uint8_t>(sign | nearest);
}

TEST(Fp8, ACodeIsTheNumberOfItsDefinition) {
  for (int code = 0; code < 256; ++code) {
    const float value = value_of_e4m3(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == e4m3_nan) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(static_cast<double>(value), defined_value(code)) << code;
      EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    }
    EXPECT_EQ(to_e4m3(value), code);
  }
}

TEST(Fp8, ANumberBecomesTheNearestCode) {
  for (int bits = 0; bits < 0x10000; ++bits) {  // every number of bf16
    bf16 x;
    x.bits = static_cast<std::uint16_t>(bits);
    ASSERT_EQ(to_e4m3(x), nearest_code(x)) << bits << ": " << static_cast<float>(x);
  }
  for (int code = 0; code < e4m3_largest; ++code) {  // around the middle of every two neighbours
    const auto middle = static_cast<float>((defined_value(code) + defined_value(code + 1)) / 2);
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 500.0f)}) {
      ASSERT_EQ(to_e4m3(x), nearest_code(x)) << x;
      ASSERT_EQ(to_e4m3(-x), nearest_code(-x)) << -x;
    }
  }
}

TEST(Fp8, AScaleIsTheSmallestPowerOfTwoThatFits) {
  for (std::uint32_t bits = 0; bits < 0x7f80u; ++bits) {  // every finite size of bf16
    bf16 largest;
    largest.bits = static_cast<std::uint16_t>(bits);
    const std::uint8_t exponent = scale_exponent(bits);
    const double size = static_cast<double>(largest), scale = std::ldexp(1.0, exponent - 127);
    ASSERT_LE(size, 448 * scale) << size;
    if (exponent != smallest_scale_exponent) {
      ASSERT_GT(size, 448 * scale / 2) << size;
    }
    ASSERT_EQ(static_cast<double>(scale_of(exponent)), scale);
    ASSERT_EQ(static_cast<double>(inverse_scale_of(exponent)), 1 / scale);
    if (bits > 0) {
      ASSERT_GE(exponent, scale_exponent(bits - 1)) << "exponents grow with the numbers";
    }
  }
  for (const std::uint32_t not_finite : {0x7f80u, 0x7fc0u, 0x7fffu})
    EXPECT_TRUE(std::isfinite(inverse_scale_of(scale_exponent(not_finite)))) << not_finite;
}

/// Rows of very different sizes; one of zeros, one with NaN, one with infinity, one of the smallest numbers of bf16.
std::vector<bf16> varied_rows(std::int64_t rows, std::int64_t stride) {
  std::vector<bf16> x = random_values<bf16>(rows * stride, 1);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t i = 0; i < stride; ++i) {
      bf16& value = x[row * stride + i];
      value = bf16(std::ldexp(static_cast<float>(value), static_cast<int>(row * 7 % 40) - 20));
      if (row == 1) value = bf16(0.0f);
      if (row == 2 && i == 3) value = bf16(std::numeric_limits<float>::quiet_NaN());
      if (row == 3 && i == 1) value = bf16(-std::numeric_limits<float>::infinity());
      if (row == 4) value.bits = static_cast<std::uint16_t>(i % 3);
    }
  return x;
}

struct Quantised {
  std::vector<std::uint8_t> exponents, codes;
  std::vector<float> scales;
};

Quantised quantised(const bf16* x, std::int64_t rows, std::int64_t width, std::int64_t stride, bool by_columns,
                    int threads) {
  const std::int64_t scales = by_columns ? width : rows, numbers = by_columns ? rows : width;
  Quantised q{.exponents = std::vector<std::uint8_t>(scales),
              .codes = std::vector<std::uint8_t>(scales * codes_of(numbers), 0xee),
              .scales = std::vector<float>(scales)};
  const Cpu cpu{.threads = threads};
  scale_exponents(cpu, {x, rows, width, stride, by_columns, q.exponents.data()});
  quantise(cpu, {x, rows, width, stride, by_columns, q.exponents.data(), q.codes.data(), q.scales.data()});
  return q;
}

TEST(Fp8, RowsAndColumnsAreScaledAndRounded) {
  struct Case {
    std::int64_t rows, width, stride;
    int threads;
  };
  for (const Case& c : {Case{6, 5, 5, 1}, Case{7, 16, 20, 1}, Case{9, 33, 40, 1}, Case{300, 130, 144, 3}}) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.width));
    const std::vector<bf16> x = varied_rows(c.rows, c.stride);
    for (const bool by_columns : {false, true}) {
      SCOPED_TRACE(by_columns ? "columns" : "rows");
      const Quantised q = quantised(x.data(), c.rows, c.width, c.stride, by_columns, c.threads);
      if (!by_columns) {
        Quantised own = q;
        std::fill(own.codes.begin(), own.codes.end(), std::uint8_t{0xee});
        quantise(Cpu{}, {x.data(), c.rows, c.width, c.stride, false, nullptr, own.codes.data(), own.scales.data()});
        ASSERT_EQ(own.codes, q.codes) << "with their own exponents";
        ASSERT_EQ(own.scales, q.scales);
      }
      const std::int64_t scales = by_columns ? c.width : c.rows, numbers = by_columns ? c.rows : c.width;
      for (std::int64_t s = 0; s < scales; ++s) {
        const auto at = [&](std::int64_t i) { return x[by_columns ? i * c.stride + s : s * c.stride + i]; };
        std::uint32_t largest = 0;
        for (std::int64_t i = 0; i < numbers; ++i) largest = std::max<std::uint32_t>(largest, at(i).bits & 0x7fffu);
        ASSERT_EQ(q.exponents[s], scale_exponent(largest)) << s;
        ASSERT_EQ(q.scales[s], std::ldexp(1.0f, q.exponents[s] - 127)) << s;
        for (std::int64_t i = 0; i < codes_of(numbers); ++i) {
          const std::uint8_t expected = i < numbers ? nearest_code(static_cast<float>(at(i)) / q.scales[s]) : 0;
          ASSERT_EQ(q.codes[s * codes_of(numbers) + i], expected) << s << ", " << i;
        }
      }
    }
  }
}

// What a layout does: the row is in two parts on two ranks, or other rows are beside it.
TEST(Fp8, ARowIsRoundedAlikeInPartsAndAmongOtherRows) {
  constexpr std::int64_t rows = 11, width = 48, first = 32;
  const std::vector<bf16> x = varied_rows(rows, width);
  const Quantised whole = quantised(x.data(), rows, width, width, false, 1);
  Quantised left = quantised(x.data(), rows, first, width, false, 1);
  Quantised right = quantised(x.data() + first, rows, width - first, width, false, 1);
  for (std::int64_t i = 0; i < rows; ++i)
    left.exponents[i] = right.exponents[i] = std::max(left.exponents[i], right.exponents[i]);
  EXPECT_EQ(left.exponents, whole.exponents);
  quantise(Cpu{}, {x.data(), rows, first, width, false, left.exponents.data(), left.codes.data(), left.scales.data()});
  quantise(Cpu{}, {x.data() + first, rows, width - first, width, false, right.exponents.data(), right.codes.data(),
                   right.scales.data()});
  for (std::int64_t i = 0; i < rows; ++i) {
    const Quantised alone = quantised(x.data() + i * width, 1, width, width, false, 1);
    for (std::int64_t k = 0; k < width; ++k) {
      const std::uint8_t code = whole.codes[i * width + k];
      ASSERT_EQ(k < first ? left.codes[i * first + k] : right.codes[i * (width - first) + k - first], code);
      ASSERT_EQ(alone.codes[k], code);
    }
  }
}

/// A rounding is off by at most 2^-4 of the number, or by half of 2^-9 of the scale.
TEST(Fp8, ANumberIsOffByASixteenthAtMost) {
  const std::vector<bf16> x = random_values<bf16>(64 * 256, 5);
  const Quantised q = quantised(x.data(), 64, 256, 256, false, 1);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double scale = static_cast<double>(q.scales[i / 256]), number = static_cast<double>(x[i]);
    const double rounded = scale * static_cast<double>(value_of_e4m3(q.codes[i]));
    ASSERT_NEAR(rounded, number, std::max(0x1p-4 * std::abs(number), 0x1p-10 * scale));
  }
}

TEST(Fp8, AProductIsThatOfWhatTheCodesStandFor) {
  struct Case {
    std::int64_t m, n, k;
    bool bias;
  };
  cpu::MatmulPlans plans;
  for (const Case& c : {Case{1, 1, 3, true}, Case{5, 7, 16, false}, Case{33, 24, 40, true}, Case{64, 48, 100, true}}) {
    SCOPED_TRACE(std::to_string(c.m) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k));
    const std::vector<bf16> x = random_values<bf16>(c.m * c.k, 1), w = random_values<bf16>(c.n * c.k, 2, 0.02);
    const std::vector<bf16> bias = random_values<bf16>(c.n, 3);
    const Quantised a = quantised(x.data(), c.m, c.k, c.k, false, 1), b = quantised(w.data(), c.n, c.k, c.k, false, 1);
    std::vector<bf16> y(c.m * c.n);
    const std::int64_t k = codes_of(c.k);
    ScaledMatmul args{.a = a.codes.data(),
                      .b = b.codes.data(),
                      .a_scales = a.scales.data(),
                      .b_scales = b.scales.data(),
                      .c = y.data(),
                      .bias = c.bias ? bias.data() : nullptr,
                      .m = c.m,
                      .n = c.n,
                      .k = k};
    const Cpu device{.plans = &plans};
    std::vector<char> workspace(scaled_matmul_workspace_bytes(device, args) + 64);
    args.workspace = workspace.data() + 64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64;
    scaled_matmul(device, args);
    std::vector<Result> expected(c.m * c.n);
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t j = 0; j < c.n; ++j) {
        Result& sum = expected[i * c.n + j];
        for (std::int64_t p = 0; p < c.k; ++p)
          sum.add(static_cast<double>(a.scales[i]) * defined_value(a.codes[i * k + p]) *
                  static_cast<double>(b.scales[j]) * defined_value(b.codes[j * k + p]));
        if (c.bias) sum.add(static_cast<double>(bias[j]));
      }
    expect_close(y.data(), expected, 4 * std::sqrt(static_cast<double>(c.k)) + 2, "product");
  }
}

}  // namespace
}  // namespace choir::kernels::tests
