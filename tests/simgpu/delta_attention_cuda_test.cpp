// The delta rule on the GPU against the CPU.
#include "kernels/delta_attention.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t batch, length, heads, head_width;
  std::vector<std::int64_t> borders;  // tokens that begin a document
  bool state;                         // the first token has one before it, and the last one one after it
};
const Case cases[] = {{1, 1, 1, 1, {}, false}, {2, 5, 3, 7, {2}, true}, {1, 67, 2, 5, {66}, true}};

struct DeltaAttentionCuda : CudaTest {};

/// Both differ from the exact result by rounded sums: so much of the root mean square of all elements.
template <class T>
void expect_alike(const std::vector<T>& of_cuda, const std::vector<T>& of_cpu, const char* what) {
  double square = 0;
  for (const T& x : of_cpu) square += double{x} * double{x};
  const double size = std::max(1.0, std::sqrt(square / static_cast<double>(of_cpu.size())));
  for (std::size_t i = 0; i < of_cpu.size(); ++i)
    ASSERT_NEAR(double{of_cuda[i]}, double{of_cpu[i]},
                2 * half_ulp<T>() * std::abs(double{of_cpu[i]}) + 2e-5 * (size + std::abs(double{of_cpu[i]})))
        << what << " [" << i << "]";
}

/// Forward, backward, and forward and backward of states alone.
template <class T, class Device>
void run(Device device, const kernels::LinearAttentionForward<T>& forward,
         const kernels::LinearAttentionBackward<T>& backward, const float* rate, float* drate, float* of_zero,
         float* transition, float* dof_zero) {
  kernels::delta_attention_forward(device, kernels::DeltaAttentionForward<T>{forward, rate});
  kernels::delta_attention_backward(device, kernels::DeltaAttentionBackward<T>{backward, rate, drate});
  kernels::delta_attention_forward(device, kernels::DeltaAttentionForward<T>{{.shape = forward.shape,
                                                                              .q = nullptr,
                                                                              .k = forward.k,
                                                                              .v = forward.v,
                                                                              .log_decay = forward.log_decay,
                                                                              .last_state = of_zero,
                                                                              .workspace = forward.workspace},
                                                                             rate,
                                                                             transition});
  kernels::delta_attention_backward(device, kernels::DeltaAttentionBackward<T>{{.shape = forward.shape,
                                                                                .q = backward.q,
                                                                                .k = backward.k,
                                                                                .v = nullptr,
                                                                                .dout = backward.dout,
                                                                                .log_decay = backward.log_decay,
                                                                                .dstate = dof_zero,
                                                                                .workspace = backward.workspace},
                                                                               rate});
}

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::int64_t count = c.batch * c.length * c.heads * c.head_width, stride = c.heads * c.head_width;
  const std::int64_t elements = c.batch * c.heads * c.head_width * c.head_width;
  const kernels::LinearAttentionShape shape{c.batch, c.length, c.heads, c.head_width, stride,
                                            stride,  stride,   stride,  0.5};
  const std::vector<T> q = random_values<T>(count, 1), k = random_values<T>(count, 2), v = random_values<T>(count, 3);
  const std::vector<T> dout = random_values<T>(count, 4);
  std::vector<float> g = random_values<float>(c.batch * c.length * c.heads, 5);
  for (float& x : g) x = -std::abs(x) / 8;
  for (const std::int64_t border : c.borders)
    for (std::int64_t h = 0; h < c.heads; ++h) g[border * c.heads + h] = -std::numeric_limits<float>::infinity();
  std::vector<float> rate = random_values<float>(c.batch * c.length * c.heads, 8);
  for (float& x : rate) x = -std::abs(x);
  const std::vector<float> before = random_values<float>(elements, 6), dlast = random_values<float>(elements, 7);
  std::vector<T> out(q.size()), dq(q.size()), dk(q.size()), dv(q.size());
  std::vector<float> last(before.size()), dg(g.size()), drate(g.size()), dstate(before.size()), of_zero(before.size()),
      transition(before.size()), dof_zero(before.size());
  const std::int64_t cpu_bytes = std::max(kernels::delta_attention_forward_workspace_bytes<T>(Cpu{}, shape),
                                          kernels::delta_attention_backward_workspace_bytes<T>(Cpu{}, shape));
  std::vector<std::byte> memory(static_cast<std::size_t>(cpu_bytes + 64));
  void* workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  run<T>(Cpu{},
         {.shape = shape,
          .q = q.data(),
          .k = k.data(),
          .v = v.data(),
          .log_decay = g.data(),
          .state = c.state ? before.data() : nullptr,
          .out = out.data(),
          .last_state = last.data(),
          .workspace = workspace},
         {.shape = shape,
          .q = q.data(),
          .k = k.data(),
          .v = v.data(),
          .dout = dout.data(),
          .log_decay = g.data(),
          .state = c.state ? before.data() : nullptr,
          .dlast = c.state ? dlast.data() : nullptr,
          .dq = dq.data(),
          .dk = dk.data(),
          .dv = dv.data(),
          .dlog_decay = dg.data(),
          .dstate = dstate.data(),
          .workspace = workspace},
         rate.data(), drate.data(), of_zero.data(), transition.data(), dof_zero.data());

  const DeviceArray<T> device_q(q, offset), device_k(k, offset), device_v(v, offset), device_dout(dout, offset);
  const DeviceArray<T> device_out(out.size(), offset), device_dq(dq.size(), offset), device_dk(dk.size(), offset),
      device_dv(dv.size(), offset);
  const DeviceArray<float> device_g(g), device_rate(rate), device_before(before), device_dlast(dlast),
      device_last(elements), device_dg(g.size()), device_drate(g.size()), device_dstate(elements),
      device_of_zero(elements), device_transition(elements), device_dof_zero(elements);
  const DeviceArray<std::byte> device_workspace(kernels::delta_attention_backward_workspace_bytes<T>(cuda, shape));
  const float* device_state = c.state ? device_before.data() : nullptr;
  run<T>(cuda,
         {.shape = shape,
          .q = device_q.data(),
          .k = device_k.data(),
          .v = device_v.data(),
          .log_decay = device_g.data(),
          .state = device_state,
          .out = device_out.data(),
          .last_state = device_last.data(),
          .workspace = device_workspace.data()},
         {.shape = shape,
          .q = device_q.data(),
          .k = device_k.data(),
          .v = device_v.data(),
          .dout = device_dout.data(),
          .log_decay = device_g.data(),
          .state = device_state,
          .dlast = c.state ? device_dlast.data() : nullptr,
          .dq = device_dq.data(),
          .dk = device_dk.data(),
          .dv = device_dv.data(),
          .dlog_decay = device_dg.data(),
          .dstate = device_dstate.data(),
          .workspace = device_workspace.data()},
         device_rate.data(), device_drate.data(), device_of_zero.data(), device_transition.data(),
         device_dof_zero.data());
  expect_alike(device_out.host(), out, "out");
  expect_alike(device_last.host(), last, "last state");
  expect_alike(device_dq.host(), dq, "dq");
  expect_alike(device_dk.host(), dk, "dk");
  expect_alike(device_dv.host(), dv, "dv");
  expect_alike(device_dg.host(), dg, "dg");
  expect_alike(device_drate.host(), drate, "drate");
  expect_alike(device_dstate.host(), dstate, "dstate");
  expect_alike(device_of_zero.host(), of_zero, "state after 0");
  expect_alike(device_transition.host(), transition, "transition");
  expect_alike(device_dof_zero.host(), dof_zero, "gradient of the state before 0");

  const DeviceArray<float> device_carried(elements);
  for (const bool transposed : {false, true}) {
    std::vector<float> carried(before.size());
    kernels::carry_through(
        Cpu{}, kernels::CarryThrough<float>{c.batch * c.heads, c.head_width, of_zero.data(), transition.data(),
                                            before.data(), carried.data(), transposed});
    kernels::carry_through(cuda, kernels::CarryThrough<float>{c.batch * c.heads, c.head_width, device_of_zero.data(),
                                                              device_transition.data(), device_before.data(),
                                                              device_carried.data(), transposed});
    expect_alike(device_carried.host(), carried, "carried state");
  }
}

TEST_P(DeltaAttentionCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width));
    for_types_and_offsets([&]<class T>(std::int64_t offset) { agrees<T>(cuda(), c, offset); });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, DeltaAttentionCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
