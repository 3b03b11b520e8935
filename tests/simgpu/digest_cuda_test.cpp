// Digests on the GPU are those of the CPU, bit for bit.
#include "kernels/digest.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Range;

struct DigestCuda : CudaTest {};

TEST_P(DigestCuda, IsThatOfTheCpu) {
  const std::vector<float> x = random_values<float>(5000, 1);
  const DeviceArray<float> device_x(x);
  for (const std::vector<Range>& ranges : {std::vector<Range>{}, std::vector<Range>{{0, 1}},
                                           std::vector<Range>{{3, 3}, {5, 100}, {101, 4099}, {0, 5000}}}) {
    const auto count = static_cast<std::int64_t>(ranges.size());
    std::vector<std::uint64_t> expected(ranges.size());
    digest(Cpu{}, {x.data(), ranges.data(), count, expected.data()});
    const DeviceArray<Range> device_ranges(ranges);
    const DeviceArray<std::uint64_t> digests(count);
    digest(cuda(), {device_x.data(), device_ranges.data(), count, digests.data()});
    cudaStreamSynchronize(cuda().stream);
    EXPECT_EQ(digests.host(), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, DigestCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
