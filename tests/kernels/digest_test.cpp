#include "kernels/digest.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

std::vector<std::uint64_t> digests_of(Cpu cpu, const std::vector<float>& x, const std::vector<Range>& ranges) {
  std::vector<std::uint64_t> digests(ranges.size());
  digest(cpu, Digest<float>{x.data(), ranges.data(), static_cast<std::int64_t>(ranges.size()), digests.data()});
  return digests;
}

TEST(Digest, ARangeHasTheSumOfItsPartsForAnyNumberOfThreads) {
  const std::vector<float> x = random_values<float>(200000, 1);
  const std::vector<std::uint64_t> whole = digests_of(Cpu{}, x, {{0, 200000}, {17, 17}});
  EXPECT_EQ(whole[1], 0u);
  for (const int threads : {1, 3}) {
    const std::vector<std::uint64_t> parts =
        digests_of(Cpu{.threads = threads}, x, {{0, 3}, {3, 100000}, {100000, 199999}, {199999, 200000}});
    EXPECT_EQ(parts[0] + parts[1] + parts[2] + parts[3], whole[0]);
  }
}

TEST(Digest, EveryBitOfEveryElementChangesIt) {
  const std::vector<Range> range = {{0, 100}};
  std::vector<float> x = random_values<float>(100, 1);
  const std::vector<std::uint64_t> before = digests_of(Cpu{}, x, range);
  for (std::size_t i = 0; i < x.size(); ++i)
    for (int bit = 0; bit < 32; ++bit) {
      const float value = x[i];
      x[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) ^ 1u << bit);
      EXPECT_NE(digests_of(Cpu{}, x, range), before) << i << ", bit " << bit;
      x[i] = value;
    }
  std::swap(x[3], x[4]);
  EXPECT_NE(digests_of(Cpu{}, x, range), before) << "two elements have changed places";
}

}  // namespace
}  // namespace choir::kernels::tests
