// Linear attention against its recurrence in double, and its gradients against finite differences of the recurrence.
#include "kernels/linear_attention.h"

#include <map>

#include "kernels/decay.h"
#include "tests/kernels/linear_attention_case.h"

namespace choir::kernels::tests {
namespace {

const LinearCase cases[] = {{1, 1, 1, 1, {}, false},
                            {2, 7, 3, 5, {3, 4}, true},
                            {1, 64, 2, 8, {}, true},
                            {1, 150, 2, 20, {0, 70}, true},
                            {2, 129, 1, 33, {128}, false},
                            {1, 130, 1, 64, {}, true},
                            {1, 1, 1, 1, {}, true, true},
                            {2, 7, 3, 5, {0, 3, 4}, true, true},
                            {1, 150, 2, 20, {0, 86}, true, true},  // the second border is at the end of a chunk
                            {2, 129, 1, 33, {128}, false, true}};

/// What the recurrence gives for operands.
struct Recurrence : LinearOperands {
  std::vector<Result> out, last;

  template <class T>
  Recurrence(const LinearCase& of, T type)
      : LinearOperands(of, 1 / std::sqrt(static_cast<double>(of.head_width)), type) {
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
          const std::int64_t item = c.at(b, c.token(n), h);
          const double decay = std::exp(g[item]);
          const double *qt = &q[item * E], *kt = &k[item * E], *vt = &v[item * E];
          for (std::int64_t f = 0; f < E; ++f) out[item * E + f].add(c.left_of_it());
          for (std::int64_t e = 0; e < E; ++e)
            for (std::int64_t f = 0; f < E; ++f) {
              Result &s = S[e * E + f], &o = out[item * E + f];
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
class LinearAttentionTest : public ::testing::Test {};
TYPED_TEST_SUITE(LinearAttentionTest, ElementTypes);

// Roundings: sums over the features and over the tokens of a chunk and the state, each with the rounding of a sum of
// decays in an exponent, of up to 64 / 8 in size.
TYPED_TEST(LinearAttentionTest, IsTheRecurrence) {
  using T = TypeParam;
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text_of(c));
    const Recurrence r(c, T{});
    const double roundings = 60 + 4 * std::sqrt(static_cast<double>(c.length + c.head_width));
    on_every_target([&](Cpu cpu) {
      const HostArrays<T> computed = linear_on<T>(cpu, r);
      expect_close(computed.out.data(), r.out, roundings, "out");
      expect_close(computed.last.data(), r.last, roundings, "state");
      for (std::int64_t b = 0; b < c.batch; ++b)
        for (std::int64_t h = 0; h < c.heads; ++h) {
          double sum = 0;
          for (std::int64_t t = 0; t < c.length; ++t) sum += r.g[c.at(b, t, h)];
          if (std::isinf(sum))
            ASSERT_EQ(double(computed.total[b * c.heads + h]), sum);
          else
            ASSERT_NEAR(double(computed.total[b * c.heads + h]), sum, 1e-4 * std::abs(sum));
        }
    });
  }
}

TEST(LinearAttentionBackwardTest, IsTheGradientOfTheRecurrence) {
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text_of(c));
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
      const HostArrays<double> computed = linear_on<double>(cpu, operands);
      const auto check = [&](const std::vector<double>& gradient, const std::map<std::size_t, double>& slopes,
                             const char* what, double added_to = 0) {
        for (const auto& [i, slope] : slopes)
          ASSERT_NEAR(gradient[i] - added_to, slope, 1e-5 * (1 + std::abs(slope))) << what << " [" << i << "]";
      };
      check(computed.dq, dq, "dq", c.left_of_it());
      check(computed.dk, dk, "dk", c.left_of_it());
      check(computed.dv, dv, "dv", c.left_of_it());
      check(computed.dg, dg, "dg", c.left_of_it());
      check(computed.dstate, dstate, "dstate");
    });
  }
}

// The gradients of f32 and bf16 are those of double of the same operands.
TEST(LinearAttentionBackwardTest, InF32AndBf16IsThatInDouble) {
  const auto of_type = [&]<class T>(T, double bound) {
    for (const LinearCase& c : cases) {
      const Recurrence r(c, T{});
      const HostArrays<double> exact = linear_on<double>(Cpu{}, r);
      on_every_target([&](Cpu cpu) {
        const HostArrays<T> computed = linear_on<T>(cpu, r);
        expect_alike(computed.dq, exact.dq, bound, "dq");
        expect_alike(computed.dk, exact.dk, bound, "dk");
        expect_alike(computed.dv, exact.dv, bound, "dv");
        expect_alike(computed.dg, exact.dg, bound, "dg");
        expect_alike(computed.dstate, exact.dstate, bound, "dstate");
      });
    }
  };
  of_type(0.0f, 2e-5);
  of_type(bf16(0.0f), 0x1p-8);
}

// Both directions: every token of a document once, with weights that depend on the distance alone.
TEST(LinearAttentionToBothSides, IsTheSumOverAllTokens) {
  const LinearCase c{1, 70, 1, 3, {0, 9}, false};
  const Recurrence r(c, 0.0);
  std::vector<double> out(r.q.size());
  for (const bool reverse : {false, true}) {
    LinearAttentionShape shape = c.shape(r.scale);
    shape.reverse = reverse;
    Workspace workspace(linear_attention_forward_workspace_bytes<double>(Cpu{}, shape));
    linear_attention_forward(Cpu{}, LinearAttentionForward<double>{.shape = shape,
                                                                   .q = r.q.data(),
                                                                   .k = r.k.data(),
                                                                   .v = r.v.data(),
                                                                   .log_decay = r.g.data(),
                                                                   .out = out.data(),
                                                                   .workspace = workspace.data()});
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
