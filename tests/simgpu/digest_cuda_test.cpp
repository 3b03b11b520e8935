// Digests on the GPU are those of the CPU, bit for bit.
#include "kernels/digest.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::Range;

struct DigestCuda : CudaTest {};

template <class T>
void is_that_of_the_cpu(kernels::Cuda cuda) {
  const std::vector<T> x = random_values<T>(5000, 1);
  const DeviceArray<T> device_x(x);
  for (const std::vector<Range>& ranges : {std::vector<Range>{}, std::vector<Range>{{0, 1}},
                                           std::vector<Range>{{3, 3}, {5, 100}, {101, 4099}, {0, 5000}}}) {
    const auto count = static_cast<std::int64_t>(ranges.size());
    std::vector<std::uint64_t> expected(ranges.size());
    digest(Cpu{}, kernels::Digest<T>{x.data(), ranges.data(), count, expected.data()});
    const DeviceArray<Range> device_ranges(ranges);
    const DeviceArray<std::uint64_t> digests(count);
    digest(cuda, kernels::Digest<T>{device_x.data(), device_ranges.data(), count, digests.data()});
    cudaStreamSynchronize(cuda.stream);
    EXPECT_EQ(digests.host(), expected);
  }
}

TEST_P(DigestCuda, IsThatOfTheCpu) {
  is_that_of_the_cpu<float>(cuda());
  is_that_of_the_cpu<bf16>(cuda());
}

INSTANTIATE_TEST_SUITE_P(Generations, DigestCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
