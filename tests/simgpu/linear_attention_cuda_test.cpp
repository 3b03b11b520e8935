// Linear attention and its decays on the GPU against the CPU.
#include "kernels/decay.h"
#include "kernels/linear_attention.h"
#include "tests/simgpu/linear_attention_arrays.h"

namespace choir::simgpu::tests {
namespace {

const LinearCase cases[] = {{1, 1, 1, 1, {}, false},
                            {2, 5, 3, 7, {2}, true},
                            {1, 67, 2, 5, {0, 66}, true},
                            {2, 5, 3, 7, {0, 3}, true, true},
                            {1, 67, 2, 5, {3}, true, true}};

struct LinearAttentionCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const LinearCase& c, std::int64_t offset) {
  const LinearOperands operands(c, 0.5, T{});
  const HostArrays<T> of_cpu = kernels::tests::linear_on<T>(Cpu{}, operands);
  DeviceArrays<T> of_cuda = on_device(kernels::tests::host_arrays<T>(operands), offset);
  const DeviceArray<std::byte> workspace(kernels::linear_attention_backward_workspace_bytes<T>(cuda, of_cuda.shape));
  of_cuda.run_linear(cuda, workspace.data());
  expect_alike(of_cuda, of_cpu);
  const std::vector<float> totals = of_cuda.total.host();
  for (std::size_t i = 0; i < totals.size(); ++i)
    if (std::isinf(of_cpu.total[i])) {
      ASSERT_EQ(totals[i], of_cpu.total[i]);
    } else {
      ASSERT_NEAR(totals[i], of_cpu.total[i], 1e-5 * std::abs(of_cpu.total[i]));
    }
}

TEST_P(LinearAttentionCuda, AgreesWithTheCpu) {
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text_of(c));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(LinearAttentionCuda, DecaysAndCarriedStatesAgreeWithTheCpu) {
  constexpr std::int64_t rows = 10, heads = 3;  // two sequences of five
  const std::vector<float> z = random_values<float>(rows * heads, 1, 20), dg = random_values<float>(rows * heads, 2);
  std::vector<kernels::DocumentRange> documents(rows, {0, 5});
  documents[3] = documents[4] = {3, 5};
  std::vector<float> g(z.size()), dz(z.size());
  kernels::decay(
      Cpu{}, kernels::Decay<float>{rows, heads, z.data(), g.data(), kernels::whole_sequences(2, 5), documents.data()});
  kernels::decay_gradient(Cpu{}, kernels::DecayGradient<float>{rows * heads, g.data(), dg.data(), dz.data()});
  const DeviceArray<float> device_z(z), device_dg(dg), device_g(z.size()), device_dz(z.size());
  const DeviceArray<kernels::DocumentRange> device_documents(documents);
  kernels::decay(cuda(), kernels::Decay<float>{rows, heads, device_z.data(), device_g.data(),
                                               kernels::whole_sequences(2, 5), device_documents.data()});
  kernels::decay_gradient(
      cuda(), kernels::DecayGradient<float>{rows * heads, device_g.data(), device_dg.data(), device_dz.data()});
  const std::vector<float> of_g = device_g.host(), of_dz = device_dz.host();
  for (std::size_t i = 0; i < g.size(); ++i) {
    if (std::isinf(g[i])) {
      ASSERT_EQ(of_g[i], g[i]);
    } else {
      ASSERT_NEAR(of_g[i], g[i], 16 * 0x1p-24 * (1e-6 + std::abs(g[i])));
    }
    ASSERT_NEAR(of_dz[i], dz[i], 32 * 0x1p-24 * (1e-6 + std::abs(dz[i])));
  }

  std::vector<float> state = random_values<float>(6, 3);
  const std::vector<float> next = random_values<float>(6, 4), total{-0.5f, -std::numeric_limits<float>::infinity()};
  const DeviceArray<float> device_state(state), device_next(next), device_total(total);
  kernels::carry_state(Cpu{}, kernels::CarryState<float>{2, 3, next.data(), total.data(), state.data()});
  kernels::carry_state(cuda(),
                       kernels::CarryState<float>{2, 3, device_next.data(), device_total.data(), device_state.data()});
  expect_alike(device_state, state, "carried state");
}

INSTANTIATE_TEST_SUITE_P(Generations, LinearAttentionCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
