// The merge of two parts of attention on the GPU against the CPU.
#include "kernels/attention_merge.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t batch, queries, heads, head_width;
};
const Case cases[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 9, 3, 64}, {3, 5, 2, 40}};

struct AttentionMergeCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::int64_t count = c.batch * c.queries * c.heads;
  const std::vector<T> part = random_values<T>(count * c.head_width, 1);
  std::vector<float> total = random_values<float>(count * c.head_width, 2), total_lse = random_values<float>(count, 4);
  std::vector<float> part_lse = random_values<float>(count, 3);
  for (std::int64_t i = 0; i < count; ++i) {
    if (i % 5 == 1) part_lse[i] = -std::numeric_limits<float>::infinity();
    if (i % 3 == 1) total_lse[i] = -std::numeric_limits<float>::infinity();
  }
  const DeviceArray<T> device_part(part, offset);
  const DeviceArray<float> device_total(total, offset), device_total_lse(total_lse), device_part_lse(part_lse);
  std::vector<double> magnitude;
  for (std::size_t i = 0; i < total.size(); ++i) magnitude.push_back(std::abs(total[i]) + std::abs(part[i]));
  attention_merge(Cpu{}, kernels::AttentionMerge<T>{c.batch, c.queries, c.heads, c.head_width, part.data(),
                                                    part_lse.data(), total.data(), total_lse.data()});
  attention_merge(cuda,
                  kernels::AttentionMerge<T>{c.batch, c.queries, c.heads, c.head_width, device_part.data(),
                                             device_part_lse.data(), device_total.data(), device_total_lse.data()});
  expect_agreement(device_total.host(), total, magnitude, 30, "total");
  const std::vector<float> lse = device_total_lse.host();
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::isinf(total_lse[i]))
      ASSERT_EQ(lse[i], total_lse[i]);
    else
      ASSERT_NEAR(lse[i], total_lse[i], 8 * 0x1p-24 * (1 + std::abs(total_lse[i])));
  }
}

TEST_P(AttentionMergeCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("heads " + std::to_string(c.heads) + " x " + std::to_string(c.head_width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, AttentionMergeCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
