// The delta rule against its recurrence in double, and its gradients against finite differences of the recurrence.
#include "kernels/delta_attention.h"

#include <map>

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
  Doubles out, last;

  template <class T>
  Recurrence(const LinearCase& of, T type) : LinearOperands(of, 0.7, type) {
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
    out.assign(q.size(), c.left_of_it());
    last = state;
    for (std::int64_t b = 0; b < c.batch; ++b)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        double* S = &last[(b * c.heads + h) * E * E];
        for (std::int64_t n = 0; n < c.length; ++n) {
          const std::int64_t item = c.at(b, c.token(n), h);
          const Doubles qt = at_unit_length(q, item), kt = at_unit_length(k, item);
          const double of_before = c.reverse ? 1 : std::exp(g[item]), of_all = c.reverse ? std::exp(g[item]) : 1;
          for (std::int64_t f = 0; f < E; ++f) {
            const auto read = [&](std::int64_t e) { out[item * E + f] += scale * qt[e] * S[e * E + f]; };
            double stood = 0;  // k_t S_{t-1}, or k_t R_t
            for (std::int64_t e = 0; e < E; ++e) stood += kt[e] * S[e * E + f];
            for (std::int64_t e = 0; e < E; ++e) {
              double& s = S[e * E + f];
              if (c.reverse) read(e);
              s = of_all * (of_before * (s - std::exp(rate[item]) * kt[e] * stood) +
                            std::exp(rate[item]) * kt[e] * v[item * E + f]);
              if (!c.reverse) read(e);
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

// Finite differences err by about the cube root of the rounding, squared.
TEST(DeltaAttentionTest, IsTheRecurrenceAndItsGradient) {
  for (const LinearCase& c : cases) {
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
      const HostArrays<double> computed = delta_on<double>(cpu, operands);
      expect_alike(computed.out, operands.out, 1e-13, "out");
      expect_alike(computed.last, operands.last, 1e-13, "state");
      const auto check = [&](const Doubles& gradient, const std::map<std::size_t, double>& slopes, const char* what,
                             double added_to = 0) {
        for (const auto& [i, slope] : slopes)
          ASSERT_NEAR(gradient[i] - added_to, slope, 1e-5 * (1 + std::abs(slope))) << what << " [" << i << "]";
      };
      check(computed.dq, dq, "dq", c.left_of_it());
      check(computed.dk, dk, "dk", c.left_of_it());
      check(computed.dv, dv, "dv", c.left_of_it());
      check(computed.dg, dg, "dg", c.left_of_it());
      check(computed.drate, drate, "drate", c.left_of_it());
      check(computed.dstate, dstate, "dstate");
    });
  }
}

TEST(DeltaAttentionTest, InF32AndBf16IsThatInDouble) {
  const auto of_type = [&]<class T>(T, double bound) {
    for (const LinearCase& c : cases) {
      SCOPED_TRACE(text_of(c));
      const Recurrence r(c, T{});
      const HostArrays<double> exact = delta_on<double>(Cpu{}, r);
      on_every_target([&](Cpu cpu) {
        const HostArrays<T> computed = delta_on<T>(cpu, r);
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
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text_of(c));
    const HostArrays<double> computed = delta_on<double>(Cpu{}, Recurrence(c, 0.0));
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
