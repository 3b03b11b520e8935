// Attention sinks on the GPU against the CPU.
#include "kernels/attention_sink.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t batch, queries, heads, head_width;
};
const Case cases[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 9, 3, 64}, {3, 5, 2, 40}};

struct AttentionSinkCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::int64_t items = c.batch * c.queries * c.heads;
  std::vector<T> out = random_values<T>(items * c.head_width, 1);
  const std::vector<T> dout = random_values<T>(items * c.head_width, 2);
  const std::vector<float> sinks = random_values<float>(c.heads, 3);
  std::vector<float> lse = random_values<float>(items, 4), terms(static_cast<std::size_t>(items));
  for (std::int64_t i = 2; i < items; i += 5) lse[i] = -std::numeric_limits<float>::infinity();
  std::vector<double> magnitude;
  for (const T& value : out) magnitude.push_back(std::abs(double{value}));
  const DeviceArray<T> device_out(out, offset), device_dout(dout, offset);
  const DeviceArray<float> device_sinks(sinks), device_lse(lse), device_terms(items);

  attention_sink(Cpu{}, kernels::AttentionSink<T>{c.batch, c.queries, c.heads, c.head_width, sinks.data(), out.data(),
                                                  lse.data()});
  attention_sink(cuda, kernels::AttentionSink<T>{c.batch, c.queries, c.heads, c.head_width, device_sinks.data(),
                                                 device_out.data(), device_lse.data()});
  expect_agreement(device_out.host(), out, magnitude, 30, "out");
  const std::vector<float> sums = device_lse.host();
  for (std::int64_t i = 0; i < items; ++i) ASSERT_NEAR(sums[i], lse[i], 8 * 0x1p-24 * (1 + std::abs(lse[i])));

  const DeviceArray<T> known_out(out, offset);
  const DeviceArray<float> known_lse(lse);
  attention_sink_gradient(
      Cpu{}, kernels::AttentionSinkGradient<T>{c.batch, c.queries, c.heads, c.head_width, sinks.data(), out.data(),
                                               dout.data(), lse.data(), terms.data()});
  attention_sink_gradient(cuda, kernels::AttentionSinkGradient<T>{
                                    c.batch, c.queries, c.heads, c.head_width, device_sinks.data(), known_out.data(),
                                    device_dout.data(), known_lse.data(), device_terms.data()});
  std::vector<double> of_terms(static_cast<std::size_t>(items));
  for (std::int64_t i = 0; i < items * c.head_width; ++i)
    of_terms[i / c.head_width] += std::abs(double{out[i]} * double{dout[i]});
  expect_agreement(device_terms.host(), terms, of_terms, 30 + static_cast<double>(c.head_width), "terms");
}

TEST_P(AttentionSinkCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("heads " + std::to_string(c.heads) + " x " + std::to_string(c.head_width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, AttentionSinkCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
