// The interpreter runs correct kernels, as nvcc compiled them for each target, with correct results and no findings.
#include <cmath>
#include <numeric>

#include "kernels/types.h"
#include "tests/simgpu/planted_kernels.h"

namespace choir::simgpu::tests {
namespace {

using kernels::bf16;

class Ptx : public PlantedKernels {
 protected:
  Ptx() : module(planted_ptx("correct", GetParam())) {}
  PtxModule module;
};

std::vector<float> numbers(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>((i * 37 + 11) % 101) / 8 - 5;
  return values;
}

std::vector<bf16> narrowed(const std::vector<float>& values) {
  std::vector<bf16> result;
  for (const float value : values) result.emplace_back(value);
  return result;
}

TEST_P(Ptx, NamesTargetAndKernels) {
  EXPECT_EQ(module.target(), "sm_" + std::to_string(GetParam()));
  EXPECT_TRUE(module.has("block_sum"));
  EXPECT_FALSE(module.has("block_product"));
  EXPECT_EQ(module.static_shared_bytes("block_sum"), 32);
}

TEST_P(Ptx, ShufflesAndSharedMemory) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, numbers(1024)), out(checker, std::size_t{4});
    const LaunchResult result =
        launch(module, "block_sum", {.grid = {4}, .block = {256}, .seed = seed}, x.data(), out.data());
    EXPECT_EQ(describe(result.findings), "");
    EXPECT_EQ(result.bytes_read, 4096);
    EXPECT_EQ(result.bytes_written, 16);
    for (std::size_t b = 0; b < 4; ++b) {  // eighths are summed exactly
      const auto begin = x.values().begin() + static_cast<std::ptrdiff_t>(256 * b);
      EXPECT_EQ(out.values()[b], std::accumulate(begin, begin + 256, 0.0f));
    }
  }
}

TEST_P(Ptx, DynamicSharedMemory) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, numbers(192)), y(checker, std::size_t{192});
    const LaunchResult result =
        launch(module, "reverse", {.grid = {2}, .block = {96}, .dynamic_shared_bytes = 384, .seed = seed}, x.data(),
               y.data(), 96);
    EXPECT_EQ(describe(result.findings), "");
    for (std::size_t i = 0; i < 192; ++i) EXPECT_EQ(y.values()[i], x.values()[i / 96 * 96 + 95 - i % 96]);
  }
}

TEST_P(Ptx, WarpBarrier) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, numbers(32)), y(checker, std::size_t{32});
    const LaunchResult result = launch(module, "neighbour", {.block = {32}, .seed = seed}, x.data(), y.data());
    EXPECT_EQ(describe(result.findings), "");
    for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(y.values()[i], x.values()[(i + 1) % 32]);
  }
}

TEST_P(Ptx, LanesThatDivergeAndConverge) {
  std::vector<int> turns(32), sums(32);
  for (int lane = 0; lane < 32; ++lane) turns[static_cast<std::size_t>(lane)] = lane * 11 % 23;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < turns[static_cast<std::size_t>(lane)] && sums[static_cast<std::size_t>(lane)] <= 900; ++i)
      if ((i + lane) % 3 != 0) sums[static_cast<std::size_t>(lane)] += i * lane;
  std::vector<int> expected;
  for (int lane = 0; lane < 32; ++lane) {
    const auto sum_of = [&](int other) { return sums[static_cast<std::size_t>(other)]; };
    int sum = sum_of(lane);
    if (lane < 16)
      sum += sum_of(lane ^ 1);
    else if (lane % 4 != 3)
      sum -= sum_of(lane & ~3);
    const int ways[] = {sum * 3, sum ^ 0x55, sum - lane, -sum, sum + 1000, sum / 2, sum / 2};
    expected.push_back(ways[lane % 7] + 10000 * 4);  // lanes 5, 12, 19 and 26
  }
  for (const unsigned seed : seeds) {
    CheckedArray<int> k(checker, turns), out(checker, std::size_t{32});
    const LaunchResult result = launch(module, "diverging", {.block = {32}, .seed = seed}, k.data(), out.data());
    EXPECT_EQ(describe(result.findings), "");
    EXPECT_EQ(out.values(), expected) << "seed " << seed;
  }
}

TEST_P(Ptx, LanesThatExitEarly) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, numbers(32)), y(checker, std::size_t{32});
    const LaunchResult result = launch(module, "leaving", {.block = {32}, .seed = seed}, x.data(), y.data(), 25);
    EXPECT_EQ(describe(result.findings), "");
    for (std::size_t i = 0; i < 25; ++i) {
      if (i % 5 == 4) continue;
      EXPECT_EQ(y.values()[i], x.values()[0]) << "seed " << seed;
    }
  }
}

TEST_P(Ptx, EdgesOfAnArray) {
  CheckedArray<float> x(checker, numbers(100)), y(checker, std::size_t{100});
  const LaunchResult result =
      launch(module, "pair_sum", {.grid = {4}, .block = {32}, .seed = 5}, x.data(), y.data(), 100);
  EXPECT_EQ(describe(result.findings), "");
  EXPECT_EQ(y.values()[98], x.values()[98] + x.values()[99]);
  EXPECT_EQ(y.values()[99], x.values()[99]);
  ASSERT_EQ(result.accesses.size(), 2u);
  for (const Access& access : result.accesses) {
    EXPECT_EQ(access.begin, access.write ? static_cast<void*>(y.data()) : x.data());
    EXPECT_EQ(access.bytes, 400);
  }
}

TEST_P(Ptx, AsynchronousCopies) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, numbers(128)), y(checker, std::size_t{128});
    const LaunchResult result = launch(module, "staged_double", {.block = {32}, .seed = seed}, x.data(), y.data());
    EXPECT_EQ(describe(result.findings), "");
    for (std::size_t i = 0; i < 128; ++i) EXPECT_EQ(y.values()[i], 2 * x.values()[i]);
  }
}

TEST_P(Ptx, Atomics) {
  for (const unsigned seed : seeds) {
    std::vector<int> keys(200);
    for (int i = 0; i < 200; ++i) keys[static_cast<std::size_t>(i)] = i * i % 7;
    CheckedArray<int> x(checker, keys), counts(checker, std::vector<int>(7));
    const LaunchResult result =
        launch(module, "histogram", {.grid = {4}, .block = {64}, .seed = seed}, x.data(), counts.data(), 200);
    EXPECT_EQ(describe(result.findings), "");
    for (int key = 0; key < 7; ++key)
      EXPECT_EQ(counts.values()[static_cast<std::size_t>(key)], std::count(keys.begin(), keys.end(), key));
  }
}

/// Products of small integers and halves: exact in every order of the sum.
std::vector<float> halves(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>((i * 13 + 5) % 17) / 2 - 4;
  return values;
}

TEST_P(Ptx, TensorCoresThroughMma) {
  const std::vector<float> a = halves(256), b = halves(128);
  CheckedArray<bf16> da(checker, narrowed(a)), db(checker, narrowed(b));
  CheckedArray<float> c(checker, std::size_t{128});
  const LaunchResult result = launch(module, "product_mma", {.block = {32}, .seed = 3}, da.data(), db.data(), c.data());
  EXPECT_EQ(describe(result.findings), "");
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < 16; ++k) sum += a[16 * i + k] * b[16 * j + k];
      EXPECT_EQ(c.values()[8 * i + j], sum) << i << ", " << j;
    }
}

TEST_P(Ptx, TensorCoresThroughWmma) {
  const std::vector<float> a = halves(256), b = numbers(256);
  CheckedArray<bf16> da(checker, narrowed(a)), db(checker, narrowed(b));
  CheckedArray<float> c(checker, std::size_t{256});
  const LaunchResult result =
      launch(module, "product_wmma", {.block = {32}, .seed = 3}, da.data(), db.data(), c.data());
  EXPECT_EQ(describe(result.findings), "");
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 16; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < 16; ++k) sum += a[16 * i + k] * bf16(b[16 * k + j]);
      EXPECT_EQ(c.values()[16 * i + j], sum) << i << ", " << j;
    }
}

TEST_P(Ptx, Arithmetic) {
  const std::vector<float> x = numbers(32);
  std::vector<int> k(32);
  for (int i = 0; i < 32; ++i) k[static_cast<std::size_t>(i)] = i * 12345 - 100000;
  CheckedArray<float> dx(checker, x);
  CheckedArray<int> dk(checker, k);
  CheckedArray<double> out(checker, std::size_t{256});
  const LaunchResult result =
      launch(module, "arithmetic", {.block = {32}, .seed = 3}, dx.data(), dk.data(), out.data());
  EXPECT_EQ(describe(result.findings), "");
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i) ballot |= static_cast<unsigned>(k[i] % 3 == 0) << i;
  for (std::size_t i = 0; i < 32; ++i) {
    const float f = x[i];
    const int n = k[i];
    const double* o = out.values().data() + 8 * i;
    EXPECT_EQ(o[0], static_cast<double>(f) * n + 1.0 / 3);
    const float functions = std::exp(f) - std::log(std::fabs(f) + 1) + std::sin(f) * std::sqrt(std::fabs(f));
    EXPECT_NEAR(o[1], functions, 1e-6 * (std::exp(f) + 8)) << f;  // some ulp of each term
    EXPECT_EQ(o[2], static_cast<float>(bf16(f)));
    EXPECT_EQ(o[3], static_cast<double>(static_cast<long long>(n) * n % 1000003 / 7));
    const int clz = n == 0 ? 32 : __builtin_clz(static_cast<unsigned>(n));
    EXPECT_EQ(o[4], __builtin_popcount(static_cast<unsigned>(n)) + clz + (n >> 3) + n * 4 + (n ^ 0x55)) << n;
    const std::uint64_t scrambled = std::uint64_t{static_cast<unsigned>(n) * 2654435761u} * 0x9E3779B9u;
    EXPECT_EQ(o[5], static_cast<double>(scrambled >> 32));
    EXPECT_EQ(o[6], std::fmax(f, 0.5f) + std::fmin(f, -0.5f) + std::rint(f * 10) + std::floor(f) + std::trunc(f * 3))
        << f;
    EXPECT_EQ(o[7], ballot % 1000);
  }
}

TEST(PtxText, UnknownInstructionsAreErrorsThatNameTheLine) {
  const std::string text =
      ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n  frobnicate.f32 %f1;\n}\n";
  try {
    const PtxModule module(text);
    FAIL() << "understood";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(std::string(error.what()), "ptx line 6: not understood: frobnicate.f32 %f1");
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Ptx, ::testing::Values(80, 90, 100), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace choir::simgpu::tests
