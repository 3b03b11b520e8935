// The delta rule on the GPU against the CPU.
#include "kernels/delta_attention.h"
#include "tests/simgpu/linear_attention_arrays.h"

namespace choir::simgpu::tests {
namespace {

const LinearCase cases[] = {{1, 1, 1, 1, {}, false},
                            {2, 5, 3, 7, {2}, true},
                            {1, 67, 2, 5, {66}, true},
                            {2, 5, 3, 7, {0, 3}, true, true},
                            {1, 67, 2, 5, {3}, true, true}};

struct DeltaAttentionCuda : CudaTest {};

template <class T>
void agrees(kernels::Cuda cuda, const LinearCase& c, std::int64_t offset) {
  const LinearOperands operands(c, 0.5, T{});
  const HostArrays<T> of_cpu = kernels::tests::delta_on<T>(Cpu{}, operands);
  DeviceArrays<T> of_cuda = on_device(kernels::tests::host_arrays<T>(operands), offset);
  const DeviceArray<std::byte> workspace(kernels::delta_attention_backward_workspace_bytes<T>(cuda, of_cuda.shape));
  of_cuda.run_delta(cuda, workspace.data());
  expect_alike(of_cuda, of_cpu);

  const DeviceArray<float> carried(c.elements_of_states());
  for (const bool transposed : {false, true}) {
    std::vector<float> expected(of_cpu.state.size());
    kernels::carry_through(Cpu{}, kernels::CarryThrough<float>{c.batch * c.heads, c.head_width, of_cpu.of_zero.data(),
                                                               of_cpu.transition.data(), of_cpu.state.data(),
                                                               expected.data(), transposed});
    kernels::carry_through(cuda, kernels::CarryThrough<float>{c.batch * c.heads, c.head_width, of_cuda.of_zero.data(),
                                                              of_cuda.transition.data(), of_cuda.state.data(),
                                                              carried.data(), transposed});
    expect_alike(carried, expected, "carried state");
  }
}

TEST_P(DeltaAttentionCuda, AgreesWithTheCpu) {
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text_of(c));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, DeltaAttentionCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
