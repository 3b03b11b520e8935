// Linear attention and its decays on the GPU against the CPU.
#include "kernels/decay.h"
#include "kernels/linear_attention.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

struct Case {
  std::int64_t batch, length, heads, head_width;
  std::vector<std::int64_t> borders;  // tokens that begin a document
  bool state;                         // the first token has one before it, and the last one one after it
  bool reverse = false;
};
const Case cases[] = {{1, 1, 1, 1, {}, false},
                      {2, 5, 3, 7, {2}, true},
                      {1, 67, 2, 5, {0, 66}, true},
                      {2, 5, 3, 7, {0, 3}, true, true},
                      {1, 67, 2, 5, {3}, true, true}};

struct LinearAttentionCuda : CudaTest {};

std::vector<float> decays_of(const Case& c) {
  std::vector<float> g = random_values<float>(c.batch * c.length * c.heads, 5);
  for (float& x : g) x = -std::abs(x) / 8;
  for (const std::int64_t border : c.borders)
    for (std::int64_t h = 0; h < c.heads; ++h) g[border * c.heads + h] = -std::numeric_limits<float>::infinity();
  return g;
}

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

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  const std::int64_t count = c.batch * c.length * c.heads * c.head_width, stride = c.heads * c.head_width;
  const std::int64_t states = c.batch * c.heads, elements = states * c.head_width * c.head_width;
  const kernels::LinearAttentionShape shape{c.batch, c.length, c.heads, c.head_width, stride,
                                            stride,  stride,   stride,  0.5,          c.reverse};
  const std::vector<T> q = random_values<T>(count, 1), k = random_values<T>(count, 2), v = random_values<T>(count, 3);
  const std::vector<T> dout = random_values<T>(count, 4);
  const std::vector<float> g = decays_of(c), before = random_values<float>(elements, 6),
                           dlast = random_values<float>(elements, 7);
  const std::vector<T> given = random_values<T>(count, 8);  // in reverse it is added to
  const std::vector<float> given_dg = random_values<float>(c.batch * c.length * c.heads, 9);
  std::vector<T> out = given, dq = given, dk = given, dv = given;
  std::vector<float> last(before.size()), total(static_cast<std::size_t>(states)), dg = given_dg, dstate(before.size());
  const auto run = [&](auto device, kernels::LinearAttentionForward<T> forward,
                       kernels::LinearAttentionBackward<T> backward) {
    kernels::linear_attention_forward(device, forward);
    kernels::linear_attention_backward(device, backward);
  };
  const std::int64_t cpu_bytes = std::max(kernels::linear_attention_forward_workspace_bytes<T>(Cpu{}, shape),
                                          kernels::linear_attention_backward_workspace_bytes<T>(Cpu{}, shape));
  std::vector<std::byte> memory(static_cast<std::size_t>(cpu_bytes + 64));
  void* workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  run(Cpu{},
      {.shape = shape,
       .q = q.data(),
       .k = k.data(),
       .v = v.data(),
       .log_decay = g.data(),
       .state = c.state ? before.data() : nullptr,
       .out = out.data(),
       .last_state = last.data(),
       .total = total.data(),
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
       .workspace = workspace});

  const DeviceArray<T> device_q(q, offset), device_k(k, offset), device_v(v, offset), device_dout(dout, offset);
  const DeviceArray<T> device_out(given, offset), device_dq(given, offset), device_dk(given, offset),
      device_dv(given, offset);
  const DeviceArray<float> device_g(g), device_before(before), device_dlast(dlast), device_last(elements),
      device_total(states), device_dg(given_dg), device_dstate(elements);
  const DeviceArray<std::byte> device_workspace(kernels::linear_attention_backward_workspace_bytes<T>(cuda, shape));
  const float* device_state = c.state ? device_before.data() : nullptr;
  run(cuda,
      {.shape = shape,
       .q = device_q.data(),
       .k = device_k.data(),
       .v = device_v.data(),
       .log_decay = device_g.data(),
       .state = device_state,
       .out = device_out.data(),
       .last_state = device_last.data(),
       .total = device_total.data(),
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
       .workspace = device_workspace.data()});
  expect_alike(device_out.host(), out, "out");
  expect_alike(device_last.host(), last, "last state");
  expect_alike(device_dq.host(), dq, "dq");
  expect_alike(device_dk.host(), dk, "dk");
  expect_alike(device_dv.host(), dv, "dv");
  expect_alike(device_dg.host(), dg, "dg");
  expect_alike(device_dstate.host(), dstate, "dstate");
  const std::vector<float> sums = device_total.host();
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (std::isinf(total[i])) {
      ASSERT_EQ(sums[i], total[i]);
    } else {
      ASSERT_NEAR(sums[i], total[i], 1e-5 * std::abs(total[i]));
    }
}

TEST_P(LinearAttentionCuda, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE("length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width));
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
  expect_alike(device_state.host(), state, "carried state");
}

INSTANTIATE_TEST_SUITE_P(Generations, LinearAttentionCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
