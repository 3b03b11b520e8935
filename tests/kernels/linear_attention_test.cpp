// Linear attention against its recurrence in double, and its gradients against finite differences of the recurrence.
#include "kernels/linear_attention.h"

#include <map>

#include "kernels/decay.h"
#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t batch, length, heads, head_width;
  std::vector<std::int64_t> borders;  // tokens that begin a document
  bool state;                         // the first token has one before it
  bool reverse = false;
};
const Case cases[] = {{1, 1, 1, 1, {}, false},
                      {2, 7, 3, 5, {3, 4}, true},
                      {1, 64, 2, 8, {}, true},
                      {1, 150, 2, 20, {0, 70}, true},
                      {2, 129, 1, 33, {128}, false},
                      {1, 130, 1, 64, {}, true},
                      {1, 1, 1, 1, {}, true, true},
                      {2, 7, 3, 5, {0, 3, 4}, true, true},
                      {1, 150, 2, 20, {0, 86}, true, true},  // the second border is at the end of a chunk
                      {2, 129, 1, 33, {128}, false, true}};

/// What is where the kernels write tokens: in reverse they add to it.
constexpr double before(const Case& c) { return c.reverse ? 1 : 77; }
constexpr double left_of_it(const Case& c) { return c.reverse ? 1 : 0; }

/// Operands in double, and what the recurrence gives for them.
struct Recurrence {
  Case c;
  double scale = 1 / std::sqrt(static_cast<double>(c.head_width));
  std::vector<double> q, k, v, g, state, dout, dlast;  // [batch, length, heads, E]; g [batch, length, heads]
  std::vector<Result> out, last;

  std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const { return (b * c.length + t) * c.heads + h; }

  template <class T>
  explicit Recurrence(const Case& of, T) : c(of) {
    const std::int64_t items = c.batch * c.length * c.heads, states = c.batch * c.heads * c.head_width * c.head_width;
    const auto values = [&](std::int64_t count, unsigned seed) {
      const std::vector<T> rounded = random_values<T>(count, seed);
      return std::vector<double>(rounded.begin(), rounded.end());
    };
    q = values(items * c.head_width, 1);
    k = values(items * c.head_width, 2);
    v = values(items * c.head_width, 3);
    dout = values(items * c.head_width, 4);
    for (const Accumulate<T> x : random_values<Accumulate<T>>(items, 5)) g.push_back(-std::abs(double(x)) / 8);
    for (auto& x : g) x = static_cast<Accumulate<T>>(x);
    for (const std::int64_t border : c.borders)
      for (std::int64_t h = 0; h < c.heads; ++h) g[at(0, border, h)] = -std::numeric_limits<double>::infinity();
    const auto of_state = [&](unsigned seed) {
      const std::vector<Accumulate<T>> rounded = random_values<Accumulate<T>>(states, seed);
      return std::vector<double>(rounded.begin(), rounded.end());
    };
    state = c.state ? of_state(6) : std::vector<double>(static_cast<std::size_t>(states));
    dlast = of_state(7);
    run();
  }

  /// Fills out and last; returns the loss <out, dout> + <last, dlast>.
  double run() {
    const std::int64_t E = c.head_width;
    double loss = 0;
    out.assign(q.size(), {});
    last.assign(state.size(), {});
    for (std::int64_t b = 0; b < c.batch; ++b)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        Result* S = &last[(b * c.heads + h) * E * E];
        for (std::int64_t i = 0; i < E * E; ++i) S[i].add(state[(b * c.heads + h) * E * E + i]);
        for (std::int64_t n = 0; n < c.length; ++n) {
          const std::int64_t t = c.reverse ? c.length - 1 - n : n;
          const double decay = std::exp(g[at(b, t, h)]);
          const double *qt = &q[at(b, t, h) * E], *kt = &k[at(b, t, h) * E], *vt = &v[at(b, t, h) * E];
          for (std::int64_t f = 0; f < E; ++f) out[at(b, t, h) * E + f].add(left_of_it(c));
          for (std::int64_t e = 0; e < E; ++e)
            for (std::int64_t f = 0; f < E; ++f) {
              Result &s = S[e * E + f], &o = out[at(b, t, h) * E + f];
              const auto read = [&] {
                o.value += scale * qt[e] * s.value;
                o.magnitude += std::abs(scale * qt[e]) * s.magnitude;
              };
              if (c.reverse) read();
              const double of_before = c.reverse ? 1 : decay, of_all = c.reverse ? decay : 1;
              s.value = of_all * (of_before * s.value + kt[e] * vt[f]);
              s.magnitude = of_all * (of_before * s.magnitude + std::abs(kt[e] * vt[f]));
              if (!c.reverse) read();
            }
        }
      }
    for (std::size_t i = 0; i < out.size(); ++i) loss += out[i].value * dout[i];
    for (std::size_t i = 0; i < last.size(); ++i) loss += last[i].value * dlast[i];
    return loss;
  }
};

template <class T>
std::vector<T> rounded(const std::vector<double>& from) {
  std::vector<T> to;
  for (const double x : from) to.push_back(static_cast<T>(static_cast<Accumulate<T>>(x)));
  return to;
}

/// What the kernels return, of operands without gaps.
template <class T>
struct Computed {
  using A = Accumulate<T>;
  std::vector<T> q, k, v, dout, out, dq, dk, dv;
  std::vector<A> g, state, dlast, last, total, dg, dstate;

  Computed(Cpu cpu, const Recurrence& r)
      : q(rounded<T>(r.q)),
        k(rounded<T>(r.k)),
        v(rounded<T>(r.v)),
        dout(rounded<T>(r.dout)),
        out(q.size(), static_cast<T>(static_cast<A>(before(r.c)))),
        dq(out),
        dk(out),
        dv(out),
        g(rounded<A>(r.g)),
        state(rounded<A>(r.state)),
        dlast(rounded<A>(r.dlast)),
        last(state.size()),
        total(r.c.batch * r.c.heads),
        dg(g.size(), static_cast<A>(before(r.c))),
        dstate(state.size()) {
    const std::int64_t stride = r.c.heads * r.c.head_width;
    const LinearAttentionShape shape{r.c.batch, r.c.length, r.c.heads, r.c.head_width, stride,
                                     stride,    stride,     stride,    r.scale,        r.c.reverse};
    std::vector<std::byte> memory(64 + std::max(linear_attention_forward_workspace_bytes<T>(cpu, shape),
                                                linear_attention_backward_workspace_bytes<T>(cpu, shape)));
    void* workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
    const A* given = r.c.state ? state.data() : nullptr;
    linear_attention_forward(cpu, LinearAttentionForward<T>{.shape = shape,
                                                            .q = q.data(),
                                                            .k = k.data(),
                                                            .v = v.data(),
                                                            .log_decay = g.data(),
                                                            .state = given,
                                                            .out = out.data(),
                                                            .last_state = last.data(),
                                                            .total = total.data(),
                                                            .workspace = workspace});
    linear_attention_backward(cpu, LinearAttentionBackward<T>{.shape = shape,
                                                              .q = q.data(),
                                                              .k = k.data(),
                                                              .v = v.data(),
                                                              .dout = dout.data(),
                                                              .log_decay = g.data(),
                                                              .state = given,
                                                              .dlast = dlast.data(),
                                                              .dq = dq.data(),
                                                              .dk = dk.data(),
                                                              .dv = dv.data(),
                                                              .dlog_decay = dg.data(),
                                                              .dstate = dstate.data(),
                                                              .workspace = workspace});
  }
};

template <class T>
class LinearAttentionTest : public ::testing::Test {};
TYPED_TEST_SUITE(LinearAttentionTest, ElementTypes);

// Roundings: sums over the features and over the tokens of a chunk and the state, each with the rounding of a sum of
// decays in an exponent, of up to 64 / 8 in size.
TYPED_TEST(LinearAttentionTest, IsTheRecurrence) {
  using T = TypeParam;
  for (const Case& c : cases) {
    SCOPED_TRACE("length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width));
    const Recurrence r(c, T{});
    const double roundings = 60 + 4 * std::sqrt(static_cast<double>(c.length + c.head_width));
    on_every_target([&](Cpu cpu) {
      const Computed<T> computed(cpu, r);
      expect_close(computed.out.data(), r.out, roundings, "out");
      expect_close(computed.last.data(), r.last, roundings, "state");
      for (std::int64_t b = 0; b < c.batch; ++b)
        for (std::int64_t h = 0; h < c.heads; ++h) {
          double sum = 0;
          for (std::int64_t t = 0; t < c.length; ++t) sum += r.g[r.at(b, t, h)];
          if (std::isinf(sum))
            ASSERT_EQ(double(computed.total[b * c.heads + h]), sum);
          else
            ASSERT_NEAR(double(computed.total[b * c.heads + h]), sum, 1e-4 * std::abs(sum));
        }
    });
  }
}

TEST(LinearAttentionBackwardTest, IsTheGradientOfTheRecurrence) {
  for (const Case& c : cases) {
    SCOPED_TRACE("length " + std::to_string(c.length) + ", width " + std::to_string(c.head_width));
    Recurrence r(c, 0.0);
    const Recurrence operands = r;
    const auto slopes_of = [&](std::vector<double>& operand) {  // by index
      std::map<std::size_t, double> slopes;
      const std::size_t step = std::max<std::size_t>(1, operand.size() / 7);
      for (std::size_t i = 0; i < operand.size(); i += step)
        slopes[i] = std::isinf(operand[i]) ? 0 : finite_difference(operand[i], [&] { return r.run(); });
      return slopes;
    };
    const auto dq = slopes_of(r.q), dk = slopes_of(r.k), dv = slopes_of(r.v), dg = slopes_of(r.g);
    const auto dstate = slopes_of(r.state);
    on_every_target([&](Cpu cpu) {
      const Computed<double> computed(cpu, operands);
      const auto check = [&](const std::vector<double>& gradient, const std::map<std::size_t, double>& slopes,
                             const char* what, double added_to = 0) {
        for (const auto& [i, slope] : slopes)
          ASSERT_NEAR(gradient[i] - added_to, slope, 1e-5 * (1 + std::abs(slope))) << what << " [" << i << "]";
      };
      check(computed.dq, dq, "dq", left_of_it(c));
      check(computed.dk, dk, "dk", left_of_it(c));
      check(computed.dv, dv, "dv", left_of_it(c));
      check(computed.dg, dg, "dg", left_of_it(c));
      check(computed.dstate, dstate, "dstate");
    });
  }
}

// The gradients of f32 and bf16 are those of double of the same operands.
TEST(LinearAttentionBackwardTest, InF32AndBf16IsThatInDouble) {
  const auto of_type = [&]<class T>(T, double bound) {
    for (const Case& c : cases) {
      const Recurrence r(c, T{});
      const Computed<double> exact(Cpu{}, r);
      on_every_target([&](Cpu cpu) {
        const Computed<T> computed(cpu, r);
        const auto check = [&](const auto& actual, const std::vector<double>& expected, const char* what) {
          double square = 0;
          for (const double x : expected) square += x * x;
          const double size = std::max(1.0, std::sqrt(square / static_cast<double>(expected.size())));
          for (std::size_t i = 0; i < expected.size(); ++i)
            ASSERT_NEAR(double(actual[i]), expected[i], bound * (size + std::abs(expected[i]))) << what << " " << i;
        };
        check(computed.dq, exact.dq, "dq");
        check(computed.dk, exact.dk, "dk");
        check(computed.dv, exact.dv, "dv");
        check(computed.dg, exact.dg, "dg");
        check(computed.dstate, exact.dstate, "dstate");
      });
    }
  };
  of_type(0.0f, 2e-5);
  of_type(bf16(0.0f), 0x1p-8);
}

// Both directions: every token of a document once, with weights that depend on the distance alone.
TEST(LinearAttentionToBothSides, IsTheSumOverAllTokens) {
  const Case c{1, 70, 1, 3, {0, 9}, false};
  const Recurrence r(c, 0.0);
  std::vector<double> out(r.q.size());
  for (const bool reverse : {false, true}) {
    LinearAttentionShape shape{1, c.length, 1, c.head_width, 3, 3, 3, 3, r.scale, reverse};
    std::vector<std::byte> memory(64 + linear_attention_forward_workspace_bytes<double>(Cpu{}, shape));
    linear_attention_forward(
        Cpu{}, LinearAttentionForward<double>{
                   .shape = shape,
                   .q = r.q.data(),
                   .k = r.k.data(),
                   .v = r.v.data(),
                   .log_decay = r.g.data(),
                   .out = out.data(),
                   .workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64});
  }
  for (std::int64_t i = 0; i < c.length; ++i) {
    std::vector<double> expected(3);
    for (std::int64_t j = 0; j < c.length; ++j) {
      if ((i < 9) != (j < 9)) continue;
      double score = 0, between = 0;
      for (std::int64_t e = 0; e < 3; ++e) score += r.scale * r.q[i * 3 + e] * r.k[j * 3 + e];
      for (std::int64_t t = std::min(i, j) + 1; t <= std::max(i, j); ++t) between += r.g[t];
      for (std::int64_t f = 0; f < 3; ++f) expected[f] += score * std::exp(between) * r.v[j * 3 + f];
    }
    for (std::int64_t f = 0; f < 3; ++f) ASSERT_NEAR(out[i * 3 + f], expected[f], 1e-12) << i;
  }
}

TEST(CarryState, DecaysAndAdds) {
  const std::vector<double> next = random_values<double>(6, 1), start = random_values<double>(6, 2);
  const std::vector<double> total{-0.5, -std::numeric_limits<double>::infinity()};
  std::vector<double> state = start;
  carry_state(Cpu{}, CarryState<double>{2, 3, next.data(), total.data(), state.data()});
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(state[i], (i < 3 ? std::exp(-0.5) * start[i] : 0) + next[i], 1e-15);
}

TEST(DecayTest, IsARootOfASigmoidAndForgetsAtBorders) {
  constexpr std::int64_t rows = 6, heads = 2;  // two sequences of three
  std::vector<double> z = random_values<double>(rows * heads, 1, 20), g(z.size()), dz(z.size());
  const std::vector<double> dg = random_values<double>(rows * heads, 2);
  const std::vector<DocumentRange> documents{{0, 2}, {0, 2}, {2, 3}, {0, 3}, {0, 3}, {0, 3}};
  const auto run = [&] {
    decay(Cpu{}, Decay<double>{rows, heads, z.data(), g.data(), whole_sequences(2, 3), documents.data()});
  };
  run();
  decay_gradient(Cpu{}, DecayGradient<double>{rows * heads, g.data(), dg.data(), dz.data()});
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t row = i / heads;
    if (row == 0 || row == 2 || row == 3) {
      EXPECT_EQ(std::exp(g[i]), 0);
      EXPECT_EQ(dz[i], 0);
      continue;
    }
    EXPECT_NEAR(g[i], -std::log1p(std::exp(-z[i])) / 16, 1e-12 * (1 + std::abs(z[i])));
    EXPECT_NEAR(dz[i], dg[i] / (1 + std::exp(z[i])) / 16, 1e-14);
  }
}

}  // namespace
}  // namespace choir::kernels::tests
