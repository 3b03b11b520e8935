// The delta rule against its recurrence in double, and its gradients against finite differences of the recurrence.
#include "kernels/delta_attention.h"

#include <map>

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t batch, length, heads, head_width;
  std::vector<std::int64_t> borders;  // tokens that begin a document
  bool state;                         // the first token has one before it
};
const Case cases[] = {{1, 1, 1, 1, {}, false},        {2, 7, 3, 5, {3, 4}, true},    {1, 64, 2, 8, {}, true},
                      {1, 150, 2, 20, {0, 70}, true}, {2, 129, 1, 33, {128}, false}, {1, 130, 1, 64, {}, true}};

using Doubles = std::vector<double>;

/// Operands in double, of the precision of T, and what the recurrence gives for them.
struct Recurrence {
  Case c;
  double scale = 0.7;
  Doubles q, k, v, g, rate, state, dout, dlast;  // [batch, length, heads, E]; g and rate, a logarithm, without E
  Doubles out, last;

  std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const { return (b * c.length + t) * c.heads + h; }

  template <class T>
  explicit Recurrence(const Case& of, T) : c(of) {
    const std::int64_t items = c.batch * c.length * c.heads, states = c.batch * c.heads * c.head_width * c.head_width;
    const auto values = [&]<class R>(R, std::int64_t count, unsigned seed) {
      const std::vector<R> rounded = random_values<R>(count, seed);
      return Doubles(rounded.begin(), rounded.end());
    };
    q = values(T{}, items * c.head_width, 1);
    k = values(T{}, items * c.head_width, 2);
    v = values(T{}, items * c.head_width, 3);
    dout = values(T{}, items * c.head_width, 4);
    using A = Accumulate<T>;
    for (const double x : values(A{}, items, 5)) g.push_back(-std::abs(x) / 8);
    for (const double x : values(A{}, items, 8)) rate.push_back(-std::abs(x));
    for (const std::int64_t border : c.borders)
      for (std::int64_t h = 0; h < c.heads; ++h) g[at(0, border, h)] = -std::numeric_limits<double>::infinity();
    state = c.state ? values(A{}, states, 6) : Doubles(static_cast<std::size_t>(states));
    dlast = values(A{}, states, 7);
    run();
  }

  Doubles at_unit_length(const Doubles& x, std::int64_t item) const {
    const Doubles row(x.begin() + item * c.head_width, x.begin() + (item + 1) * c.head_width);
    double square = delta_norm_epsilon;
    for (const double e : row) square += e * e;
    Doubles unit;
    for (const double e : row) unit.push_back(e / std::sqrt(square));
    return unit;
  }

  /// Fills out and last; returns the loss <out, dout> + <last, dlast>.
  double run() {
    const std::int64_t E = c.head_width;
    out.assign(q.size(), 0);
    last = state;
    for (std::int64_t b = 0; b < c.batch; ++b)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        double* S = &last[(b * c.heads + h) * E * E];
        for (std::int64_t t = 0; t < c.length; ++t) {
          const std::int64_t item = at(b, t, h);
          const Doubles qt = at_unit_length(q, item), kt = at_unit_length(k, item);
          for (std::int64_t f = 0; f < E; ++f) {
            double stood = 0;  // k_t S_{t-1}
            for (std::int64_t e = 0; e < E; ++e) stood += kt[e] * S[e * E + f];
            for (std::int64_t e = 0; e < E; ++e) {
              double& s = S[e * E + f];
              s = std::exp(g[item]) * (s - std::exp(rate[item]) * kt[e] * stood) +
                  std::exp(rate[item]) * kt[e] * v[item * E + f];
              out[item * E + f] += scale * qt[e] * s;
            }
          }
        }
      }
    double loss = 0;
    for (std::size_t i = 0; i < out.size(); ++i) loss += out[i] * dout[i];
    for (std::size_t i = 0; i < last.size(); ++i) loss += last[i] * dlast[i];
    return loss;
  }
};

template <class T>
std::vector<T> rounded(const Doubles& from) {
  std::vector<T> to;
  for (const double x : from) to.push_back(static_cast<T>(static_cast<Accumulate<T>>(x)));
  return to;
}

/// What the kernels return, of operands without gaps.
template <class T>
struct Computed {
  using A = Accumulate<T>;
  std::vector<T> q, k, v, dout, out, dq, dk, dv;
  std::vector<A> g, rate, state, dlast, last, dg, drate, dstate;
  std::vector<A> of_zero, transition, dof_zero;  // N and M of S' = M S + N, and the gradient of S if that of S' is 0

  Computed(Cpu cpu, const Recurrence& r)
      : q(rounded<T>(r.q)),
        k(rounded<T>(r.k)),
        v(rounded<T>(r.v)),
        dout(rounded<T>(r.dout)),
        out(q.size()),
        dq(q.size()),
        dk(q.size()),
        dv(q.size()),
        g(rounded<A>(r.g)),
        rate(rounded<A>(r.rate)),
        state(rounded<A>(r.state)),
        dlast(rounded<A>(r.dlast)),
        last(state.size()),
        dg(g.size()),
        drate(g.size()),
        dstate(state.size()),
        of_zero(state.size()),
        transition(state.size()),
        dof_zero(state.size()) {
    const std::int64_t stride = r.c.heads * r.c.head_width;
    const LinearAttentionShape shape{r.c.batch, r.c.length, r.c.heads, r.c.head_width, stride,
                                     stride,    stride,     stride,    r.scale};
    std::vector<std::byte> memory(64 + std::max(delta_attention_forward_workspace_bytes<T>(cpu, shape),
                                                delta_attention_backward_workspace_bytes<T>(cpu, shape)));
    void* workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
    const A* before = r.c.state ? state.data() : nullptr;
    LinearAttentionForward<T> forward{.shape = shape,
                                      .q = q.data(),
                                      .k = k.data(),
                                      .v = v.data(),
                                      .log_decay = g.data(),
                                      .state = before,
                                      .out = out.data(),
                                      .last_state = last.data(),
                                      .workspace = workspace};
    delta_attention_forward(cpu, DeltaAttentionForward<T>{forward, rate.data()});
    forward.q = nullptr;
    forward.out = nullptr;
    forward.state = nullptr;
    forward.last_state = of_zero.data();
    delta_attention_forward(cpu, DeltaAttentionForward<T>{forward, rate.data(), transition.data()});
    LinearAttentionBackward<T> backward{.shape = shape,
                                        .q = q.data(),
                                        .k = k.data(),
                                        .v = v.data(),
                                        .dout = dout.data(),
                                        .log_decay = g.data(),
                                        .state = before,
                                        .dlast = dlast.data(),
                                        .dq = dq.data(),
                                        .dk = dk.data(),
                                        .dv = dv.data(),
                                        .dlog_decay = dg.data(),
                                        .dstate = dstate.data(),
                                        .workspace = workspace};
    delta_attention_backward(cpu, DeltaAttentionBackward<T>{backward, rate.data(), drate.data()});
    delta_attention_backward(cpu, DeltaAttentionBackward<T>{.linear = {.shape = shape,
                                                                       .q = q.data(),
                                                                       .k = k.data(),
                                                                       .v = nullptr,
                                                                       .dout = dout.data(),
                                                                       .log_decay = g.data(),
                                                                       .dstate = dof_zero.data(),
                                                                       .workspace = workspace},
                                                            .log_rate = rate.data()});
  }
};

/// Both are sums of rounded products with transitions that lengthen nothing: so much of their root mean square.
template <class T>
void expect_alike(const std::vector<T>& actual, const Doubles& expected, double bound, const char* what) {
  double square = 0;
  for (const double x : expected) square += x * x;
  const double size = std::max(1.0, std::sqrt(square / static_cast<double>(expected.size())));
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(double(actual[i]), expected[i], bound * (size + std::abs(expected[i]))) << what << " [" << i << "]";
}

std::string text_of(const Case& c) {
  return "length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width);
}

// Finite differences err by about the cube root of the rounding, squared.
TEST(DeltaAttentionTest, IsTheRecurrenceAndItsGradient) {
  for (const Case& c : cases) {
    SCOPED_TRACE(text_of(c));
    Recurrence r(c, 0.0);
    const Recurrence operands = r;
    const auto slopes_of = [&](Doubles& operand) {  // by index
      std::map<std::size_t, double> slopes;
      const std::size_t step = std::max<std::size_t>(1, operand.size() / 7);
      for (std::size_t i = 0; i < operand.size(); i += step)
        slopes[i] = std::isinf(operand[i]) ? 0 : finite_difference(operand[i], [&] { return r.run(); });
      return slopes;
    };
    const auto dq = slopes_of(r.q), dk = slopes_of(r.k), dv = slopes_of(r.v), dg = slopes_of(r.g);
    const auto drate = slopes_of(r.rate), dstate = slopes_of(r.state);
    on_every_target([&](Cpu cpu) {
      const Computed<double> computed(cpu, operands);
      expect_alike(computed.out, operands.out, 1e-13, "out");
      expect_alike(computed.last, operands.last, 1e-13, "state");
      const auto check = [&](const Doubles& gradient, const std::map<std::size_t, double>& slopes, const char* what) {
        for (const auto& [i, slope] : slopes)
          ASSERT_NEAR(gradient[i], slope, 1e-5 * (1 + std::abs(slope))) << what << " [" << i << "]";
      };
      check(computed.dq, dq, "dq");
      check(computed.dk, dk, "dk");
      check(computed.dv, dv, "dv");
      check(computed.dg, dg, "dg");
      check(computed.drate, drate, "drate");
      check(computed.dstate, dstate, "dstate");
    });
  }
}

TEST(DeltaAttentionTest, InF32AndBf16IsThatInDouble) {
  const auto of_type = [&]<class T>(T, double bound) {
    for (const Case& c : cases) {
      SCOPED_TRACE(text_of(c));
      const Recurrence r(c, T{});
      const Computed<double> exact(Cpu{}, r);
      on_every_target([&](Cpu cpu) {
        const Computed<T> computed(cpu, r);
        expect_alike(computed.out, exact.out, bound, "out");
        expect_alike(computed.last, exact.last, 2e-5, "state");
        expect_alike(computed.dq, exact.dq, bound, "dq");
        expect_alike(computed.dk, exact.dk, bound, "dk");
        expect_alike(computed.dv, exact.dv, bound, "dv");
        expect_alike(computed.dg, exact.dg, 2e-5, "dg");
        expect_alike(computed.drate, exact.drate, 2e-5, "drate");
        expect_alike(computed.dstate, exact.dstate, 2e-5, "dstate");
      });
    }
  };
  of_type(0.0f, 2e-5);
  of_type(bf16(0.0f), 0x1p-8);
}

// S' = M S + N, and so the gradient of S is M^T dS' + that of a last state of which nothing depends.
TEST(DeltaAttentionTest, ChangesAStateByAMatrix) {
  for (const Case& c : cases) {
    SCOPED_TRACE(text_of(c));
    const Computed<double> computed(Cpu{}, Recurrence(c, 0.0));
    Doubles out(computed.state.size());
    CarryThrough<double> carry{.states = c.batch * c.heads,
                               .width = c.head_width,
                               .next = computed.of_zero.data(),
                               .transition = computed.transition.data(),
                               .state = computed.state.data(),
                               .out = out.data()};
    carry_through(Cpu{}, carry);
    expect_alike(out, computed.last, 1e-13, "state");
    carry.next = computed.dof_zero.data();
    carry.state = computed.dlast.data();
    carry.transposed = true;
    carry_through(Cpu{}, carry);
    expect_alike(out, computed.dstate, 1e-13, "gradient of the state");
  }
}

}  // namespace
}  // namespace choir::kernels::tests
