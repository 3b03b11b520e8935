// What the tests of linear attention and of the delta rule share: operands, and the arguments that read and write them
// in the memory of the host or, on the simulated GPU, of a device.
#pragma once

#include <algorithm>

#include "kernels/delta_attention.h"
#include "tests/kernels/compare.h"

namespace choir::kernels::tests {

struct LinearCase {
  std::int64_t batch, length, heads, head_width;
  std::vector<std::int64_t> borders;  // tokens of the first sequence that begin a document
  bool state;                         // the first token has one before it, and the last one a gradient after it
  bool reverse = false;

  std::int64_t gates() const { return batch * length * heads; }
  std::int64_t elements_of_states() const { return batch * heads * head_width * head_width; }
  std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const { return (b * length + t) * heads + h; }
  std::int64_t token(std::int64_t n) const { return reverse ? length - 1 - n : n; }  ///< that comes as number n
  /// What is where the kernels write tokens; in reverse they add to it.
  double before() const { return reverse ? 1 : 77; }
  double left_of_it() const { return reverse ? 1 : 0; }

  LinearAttentionShape shape(double scale) const {
    const std::int64_t stride = heads * head_width;
    return {batch, length, heads, head_width, stride, stride, stride, stride, scale, reverse};
  }
};

inline std::string text_of(const LinearCase& c) {
  return "length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width) +
         (c.reverse ? ", in reverse" : "");
}

using Doubles = std::vector<double>;

/// Operands in double, of the precision of T.
struct LinearOperands {
  LinearCase c;
  double scale;
  Doubles q, k, v, dout;  // [batch, length, heads, E]
  Doubles g, rate;        // [batch, length, heads]; the logarithm of the rate
  Doubles state, dlast;   // [batch, heads, E, E]

  template <class T>
  LinearOperands(const LinearCase& of, double scale_of_q, T) : c(of), scale(scale_of_q) {
    using A = Accumulate<T>;
    const auto values = []<class R>(R, std::int64_t count, unsigned seed) {
      const std::vector<R> rounded = random_values<R>(count, seed);
      return Doubles(rounded.begin(), rounded.end());
    };
    const std::int64_t elements = c.gates() * c.head_width;
    q = values(T{}, elements, 1);
    k = values(T{}, elements, 2);
    v = values(T{}, elements, 3);
    dout = values(T{}, elements, 4);
    for (const double x : values(A{}, c.gates(), 5)) g.push_back(-std::abs(x) / 8);
    for (const double x : values(A{}, c.gates(), 8)) rate.push_back(-std::abs(x));
    for (const std::int64_t border : c.borders)
      for (std::int64_t h = 0; h < c.heads; ++h) g[c.at(0, border, h)] = -std::numeric_limits<double>::infinity();
    state = dlast = Doubles(static_cast<std::size_t>(c.elements_of_states()));
    if (!c.state) return;
    state = values(A{}, c.elements_of_states(), 6);
    dlast = values(A{}, c.elements_of_states(), 7);
  }
};

/// 64-byte aligned.
struct Workspace {
  std::vector<std::byte> memory;
  explicit Workspace(std::int64_t bytes) : memory(static_cast<std::size_t>(bytes + 64)) {}
  void* data() { return memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64; }
};

/// What the kernels read and write, without gaps, in arrays with data(). `of_zero`, `transition` and `dof_zero` are N
/// and M of S' = M S + N and, if the gradient of S' is 0, that of S.
template <class T, class Tokens, class Numbers>
struct LinearArrays {
  LinearAttentionShape shape;
  bool has_state;
  Tokens q, k, v, dout;
  Numbers g, rate, state, dlast;
  Tokens out, dq, dk, dv;
  Numbers last, total, dg, drate, dstate, of_zero, transition, dof_zero;

  LinearAttentionForward<T> forward(void* workspace) {
    return {.shape = shape,
            .q = q.data(),
            .k = k.data(),
            .v = v.data(),
            .log_decay = g.data(),
            .state = has_state ? state.data() : nullptr,
            .out = out.data(),
            .last_state = last.data(),
            .total = total.data(),
            .workspace = workspace};
  }
  LinearAttentionBackward<T> backward(void* workspace) {
    return {.shape = shape,
            .q = q.data(),
            .k = k.data(),
            .v = v.data(),
            .dout = dout.data(),
            .log_decay = g.data(),
            .state = has_state ? state.data() : nullptr,
            .dlast = has_state ? dlast.data() : nullptr,
            .dq = dq.data(),
            .dk = dk.data(),
            .dv = dv.data(),
            .dlog_decay = dg.data(),
            .dstate = dstate.data(),
            .workspace = workspace};
  }

  template <class Device>
  void run_linear(Device device, void* workspace) {
    linear_attention_forward(device, forward(workspace));
    linear_attention_backward(device, backward(workspace));
  }
  /// Also of states alone.
  template <class Device>
  void run_delta(Device device, void* workspace) {
    delta_attention_forward(device, DeltaAttentionForward<T>{forward(workspace), rate.data()});
    delta_attention_backward(device, DeltaAttentionBackward<T>{backward(workspace), rate.data(), drate.data()});
    LinearAttentionForward<T> state_alone = forward(workspace);
    state_alone.q = nullptr;
    state_alone.state = nullptr;
    state_alone.out = nullptr;
    state_alone.last_state = of_zero.data();
    delta_attention_forward(device, DeltaAttentionForward<T>{state_alone, rate.data(), transition.data()});
    LinearAttentionBackward<T> gradient_alone = backward(workspace);
    gradient_alone.v = nullptr;
    gradient_alone.state = gradient_alone.dlast = nullptr;
    gradient_alone.dq = gradient_alone.dk = gradient_alone.dv = nullptr;
    gradient_alone.dlog_decay = nullptr;
    gradient_alone.dstate = dof_zero.data();
    delta_attention_backward(device, DeltaAttentionBackward<T>{gradient_alone, rate.data()});
  }
};

template <class T>
using HostArrays = LinearArrays<T, std::vector<T>, std::vector<Accumulate<T>>>;

template <class T>
HostArrays<T> host_arrays(const LinearOperands& o) {
  using A = Accumulate<T>;
  const auto round = []<class R>(R, const Doubles& from) {
    std::vector<R> to;
    for (const double x : from) to.push_back(static_cast<R>(static_cast<A>(x)));
    return to;
  };
  const std::vector<T> tokens(o.q.size(), static_cast<T>(static_cast<A>(o.c.before())));
  const std::vector<A> gates(o.g.size(), static_cast<A>(o.c.before())), states(o.state.size());
  return {.shape = o.c.shape(o.scale),
          .has_state = o.c.state,
          .q = round(T{}, o.q),
          .k = round(T{}, o.k),
          .v = round(T{}, o.v),
          .dout = round(T{}, o.dout),
          .g = round(A{}, o.g),
          .rate = round(A{}, o.rate),
          .state = round(A{}, o.state),
          .dlast = round(A{}, o.dlast),
          .out = tokens,
          .dq = tokens,
          .dk = tokens,
          .dv = tokens,
          .last = states,
          .total = std::vector<A>(static_cast<std::size_t>(o.c.batch * o.c.heads)),
          .dg = gates,
          .drate = gates,
          .dstate = states,
          .of_zero = states,
          .transition = states,
          .dof_zero = states};
}

/// What the CPU computes.
template <class T>
HostArrays<T> linear_on(Cpu cpu, const LinearOperands& operands) {
  HostArrays<T> arrays = host_arrays<T>(operands);
  Workspace workspace(std::max(linear_attention_forward_workspace_bytes<T>(cpu, arrays.shape),
                               linear_attention_backward_workspace_bytes<T>(cpu, arrays.shape)));
  arrays.run_linear(cpu, workspace.data());
  return arrays;
}
template <class T>
HostArrays<T> delta_on(Cpu cpu, const LinearOperands& operands) {
  HostArrays<T> arrays = host_arrays<T>(operands);
  Workspace workspace(std::max(delta_attention_forward_workspace_bytes<T>(cpu, arrays.shape),
                               delta_attention_backward_workspace_bytes<T>(cpu, arrays.shape)));
  arrays.run_delta(cpu, workspace.data());
  return arrays;
}

/// Both are sums of rounded products: so much of their root mean square, and what is rounded at the end.
template <class T, class Expected>
void expect_alike(const std::vector<T>& actual, const std::vector<Expected>& expected, double bound, const char* what,
                  double rounded = 0) {
  double square = 0;
  for (const Expected& x : expected) square += static_cast<double>(x) * static_cast<double>(x);
  const double size = std::max(1.0, std::sqrt(square / static_cast<double>(expected.size())));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<double>(expected[i]);
    ASSERT_NEAR(static_cast<double>(actual[i]), value, bound * (size + std::abs(value)) + rounded * std::abs(value))
        << what << " [" << i << "]";
  }
}

}  // namespace choir::kernels::tests
