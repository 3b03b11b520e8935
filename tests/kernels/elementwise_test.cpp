// Fill, cast and copy are exact; random_normal is a function of the index with the moments of a normal.
#include "kernels/elementwise.h"

#include <bit>
#include <cstring>

#include "kernels/philox.h"
#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

const std::int64_t counts[] = {0, 1, 3, 17, 64, 100, 1000, 70001};

template <class T>
class Elementwise : public ::testing::Test {};
TYPED_TEST_SUITE(Elementwise, ElementTypes);

template <class From, class To>
void check_cast(Cpu cpu, const std::vector<From>& x) {
  std::vector<To> y(x.size());
  cast(cpu, x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    To expected;
    if constexpr (std::is_same_v<From, double> && std::is_same_v<To, bf16>) {
      expected = bf16(static_cast<float>(x[i]));
    } else {
      expected = static_cast<To>(x[i]);
    }
    ASSERT_EQ(std::memcmp(&y[i], &expected, sizeof(To)), 0) << i << ": " << double(x[i]);
  }
}

TYPED_TEST(Elementwise, FillAndCastAreExact) {
  using T = TypeParam;
  for (const std::int64_t count : counts) {
    const std::vector<T> a = random_values<T>(count, 1, 100);
    on_every_target([&](Cpu cpu) {
      std::vector<T> y(count, T(0.0f));
      fill(cpu, y.data(), count, 0.3f);
      for (std::int64_t i = 0; i < count; ++i) ASSERT_EQ(double(y[i]), double(T(0.3f)));
      check_cast<T, float>(cpu, a);
      check_cast<T, bf16>(cpu, a);
      check_cast<T, double>(cpu, a);
    });
  }
}

TEST(ZeroRanges, LeavesTheRest) {
  const std::vector<Range> ranges = {{0, 1}, {3, 20}, {64, 64}, {100, 70000}};
  on_every_target([&](Cpu cpu) {
    std::vector<float> x(70001, 1.0f), expected = x;
    for (const auto& [begin, end] : ranges) std::fill(expected.begin() + begin, expected.begin() + end, 0.0f);
    zero_ranges(cpu, ZeroRanges<float>{x.data(), ranges.data(), std::ssize(ranges), 69918});
    ASSERT_EQ(x, expected);
  });
}

TEST(Cast, RoundsToBf16LikeTheScalarTypeForEveryKindOfBits) {
  std::vector<float> x;
  for (std::uint32_t upper = 0; upper < 0x10000; upper += 7) {
    for (const std::uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      x.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  for (const std::uint32_t bits : {0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fffffffu, 0xffffffffu, 0x7f7fffffu}) {
    x.push_back(std::bit_cast<float>(bits));
  }
  on_every_target([&](Cpu cpu) {
    std::vector<bf16> y(x.size());
    cast(cpu, x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(y[i].bits, bf16(x[i]).bits) << std::hex << std::bit_cast<std::uint32_t>(x[i]);
    }
  });
}

template <class T>
class RowsTest : public ::testing::Test {};
TYPED_TEST_SUITE(RowsTest, ElementTypes);

TYPED_TEST(RowsTest, AreAccumulatedAndNarrowedBetweenAnyStrides) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const std::int64_t width : {1, 7, 40, 3000}) {
    const std::int64_t rows = 13, wide = width + 5;
    const std::vector<T> x = random_values<T>(rows * wide, 1);
    const std::vector<A> start = random_values<A>(rows * wide, 2);
    std::vector<A> sum = start;
    std::vector<T> narrowed(rows * wide, T(3)), expected = narrowed;
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t i = 0; i < width; ++i) {
        sum[row * wide + i] += static_cast<A>(x[row * width + i]);
        expected[row * wide + i] = T(start[row * width + i]);
      }
    on_every_target([&](Cpu cpu) {
      std::vector<A> y = start;
      accumulate<T>(cpu, {x.data(), y.data(), rows, width, width, wide});
      ASSERT_EQ(y, sum);
      std::vector<T> z = narrowed;
      narrow<T>(cpu, {start.data(), z.data(), rows, width, width, wide});
      for (std::size_t i = 0; i < z.size(); ++i) ASSERT_EQ(double(z[i]), double(expected[i])) << i;
    });
  }
}

TEST(CopyRows, CopiesRowsAndNothingElse) {
  struct Case {
    std::int64_t rows, row_bytes, from_stride, to_stride;
  };
  for (const Case& c : {Case{1, 5, 5, 5}, Case{3, 7, 9, 8}, Case{4, 64, 64, 64}, Case{300, 1000, 1001, 1003},
                        Case{300, 1000, 1000, 1000}, Case{1, 400000, 0, 0}}) {
    std::vector<std::uint8_t> from(c.rows * std::max(c.from_stride, c.row_bytes));
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 31 % 251);
    std::vector<std::uint8_t> expected(c.rows * std::max(c.to_stride, c.row_bytes), 255), to = expected;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      std::memcpy(&expected[row * c.to_stride], &from[row * c.from_stride], static_cast<std::size_t>(c.row_bytes));
    }
    for (const int threads : {1, 3}) {
      std::fill(to.begin(), to.end(), std::uint8_t{255});
      copy_rows(Cpu{.threads = threads}, from.data(), c.from_stride, to.data(), c.to_stride, c.rows, c.row_bytes);
      ASSERT_EQ(to, expected);
    }
  }
}

// u and the angle have 24 and 32 bits; log, sqrt, sin and cos are accurate to 2 ulp of f32 each, and the relative
// errors of the radius and of the angle (at most pi / 4 after reduction) add up.
TEST(RandomNormal, IsBoxMullerOnPhiloxBlocks) {
  const std::int64_t first = 123456789012, count = 3001;
  on_every_target([&](Cpu cpu) {
    std::vector<float> x(count);
    random_normal(cpu, x.data(), first, count, 42, 17, 0.5f, 2.0f);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<std::uint64_t>(first + i);
      const PhiloxBlock block = philox(42, index / 4, 17);
      const std::uint32_t w0 = block[index % 4 / 2 * 2], w1 = block[index % 4 / 2 * 2 + 1];
      const double u = ((w0 >> 8) + 1) / 16777216.0, angle = 2 * M_PI * w1 / 4294967296.0;
      const double radius = std::sqrt(-2 * std::log(u));
      const double z = radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
      ASSERT_NEAR(x[i], 0.5 + 2 * z, 0x1p-24 * (8 * 2 * std::abs(z) + 2 * radius + std::abs(0.5 + 2 * z))) << i;
    }
  });
}

TEST(RandomNormal, HasTheSameBitsWholeInPiecesAndOnEveryInstructionSet) {
  const std::int64_t count = 70001;
  std::vector<float> whole(count);
  random_normal(Cpu{}, whole.data(), 0, count, 1, 2, 0.1f, 0.02f);
  on_every_target([&](Cpu cpu) {
    std::vector<float> again(count);
    random_normal(cpu, again.data(), 0, count, 1, 2, 0.1f, 0.02f);
    ASSERT_EQ(std::memcmp(again.data(), whole.data(), count * sizeof(float)), 0);
    const std::int64_t ends[] = {0, 1, 2, 7, 1024, 3333, 50001, count};
    for (std::size_t i = 0; i + 1 < std::size(ends); ++i) {
      std::vector<float> piece(ends[i + 1] - ends[i]);
      random_normal(cpu, piece.data(), ends[i], ends[i + 1] - ends[i], 1, 2, 0.1f, 0.02f);
      ASSERT_EQ(std::memcmp(piece.data(), &whole[ends[i]], piece.size() * sizeof(float)), 0) << ends[i];
    }
  });
}

// The hash must be the same on every machine and in every version: if it changes, so do the start values of all models.
TEST(RandomNormal, HasTheBitsOfEveryOtherMachine) {
  on_every_target([](Cpu cpu) {
    std::vector<float> x(70001);
    random_normal(cpu, x.data(), 0, 70001, 1, 2, 0.1f, 0.02f);
    std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, of words
    for (const float value : x) hash = (hash ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001b3;
    EXPECT_EQ(hash, 0xb4bc536b02fbd7c6);
  });
}

TEST(RandomNormal, HasTheMomentsOfANormal) {
  const std::int64_t count = 1 << 20;
  std::vector<float> x(count), other(count);
  random_normal(Cpu{}, x.data(), 0, count, 1, 0, 0, 1);
  random_normal(Cpu{}, other.data(), 0, count, 1, 1, 0, 1);
  double moments[5] = {}, product = 0, neighbours = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    for (int k = 1; k <= 4; ++k) moments[k] += std::pow(x[i], k) / count;
    product += double{x[i]} * other[i] / count;
    if (i > 0) neighbours += double{x[i]} * x[i - 1] / count;
  }
  // Five standard deviations of each mean: sqrt(E z^2k - (E z^k)^2), which is 1, sqrt(2), sqrt(15), sqrt(96).
  const double unit = 5 / std::sqrt(static_cast<double>(count));
  EXPECT_NEAR(moments[1], 0, unit);
  EXPECT_NEAR(moments[2], 1, unit * std::sqrt(2.0));
  EXPECT_NEAR(moments[3], 0, unit * std::sqrt(15.0));
  EXPECT_NEAR(moments[4], 3, unit * std::sqrt(96.0));
  EXPECT_NEAR(product, 0, unit);
  EXPECT_NEAR(neighbours, 0, unit);
}

}  // namespace
}  // namespace choir::kernels::tests
