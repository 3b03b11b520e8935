// Layer norm and RMS norm against their formula, and their gradients against formula and finite differences.
#include "kernels/norm.h"

#include "tests/kernels/compare.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  std::int64_t rows, width;
  bool rms, bias, residual;
};
const Case cases[] = {
    {1, 1, false, true, false},    {5, 3, false, true, true},      {4, 17, true, false, false},
    {3, 64, false, false, true},   {7, 100, false, true, true},    {1, 1000, true, true, true},
    {70, 1000, false, true, true}, {300, 384, true, false, false},
};

template <class T>
struct Data {
  using A = Accumulate<T>;
  Case c;
  std::vector<T> x, dy, residual;
  std::vector<A> weight, bias;

  explicit Data(const Case& shape)
      : c(shape),
        x(random_values<T>(c.rows * c.width, 1)),
        dy(random_values<T>(c.rows * c.width, 2)),
        residual(random_values<T>(c.rows * c.width, 3)),
        weight(random_values<A>(c.width, 4)),
        bias(random_values<A>(c.width, 5)) {
    for (T& value : x) value = T(static_cast<float>(value) + 0.5f);  // a mean for layer norm to remove
  }

  void statistics(std::int64_t row, double& mean, double& rstd) const {
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < c.width; ++i) sum += x[row * c.width + i];
    mean = c.rms ? 0 : sum / static_cast<double>(c.width);
    for (std::int64_t i = 0; i < c.width; ++i) squares += std::pow(x[row * c.width + i] - mean, 2);
    rstd = 1 / std::sqrt(squares / static_cast<double>(c.width) + 1e-5);
  }

  NormForward<T> forward(T* y, A* mean, A* rstd) const {
    return {.x = x.data(),
            .weight = weight.data(),
            .bias = c.bias ? bias.data() : nullptr,
            .y = y,
            .mean = c.rms ? nullptr : mean,
            .rstd = rstd,
            .rows = c.rows,
            .width = c.width};
  }
};

double roundings(std::int64_t terms) { return 4 * std::sqrt(static_cast<double>(terms)) + 8; }

template <class T>
class Norm : public ::testing::Test {};
TYPED_TEST_SUITE(Norm, ElementTypes);

TYPED_TEST(Norm, ForwardIsItsFormula) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const Data<T> data(c);
    std::vector<Result> expected, expected_rstd;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      double mean, rstd;
      data.statistics(row, mean, rstd);
      expected_rstd.push_back({rstd, rstd});
      for (std::int64_t i = 0; i < c.width; ++i) {
        const double x = data.x[row * c.width + i], weight = data.weight[i], bias = c.bias ? data.bias[i] : 0;
        expected.push_back({(x - mean) * rstd * weight + bias,
                            (std::abs(x) + std::abs(mean)) * rstd * std::abs(weight) + std::abs(bias)});
      }
    }
    on_every_target([&](Cpu cpu) {
      std::vector<T> y(data.x.size());
      std::vector<A> mean(c.rows), rstd(c.rows);
      norm_forward(cpu, data.forward(y.data(), mean.data(), rstd.data()));
      expect_close(y.data(), expected, roundings(c.width), "y");
      expect_close(rstd.data(), expected_rstd, roundings(c.width), "rstd");
    });
  }
}

TYPED_TEST(Norm, BackwardIsItsFormula) {
  using T = TypeParam;
  using A = Accumulate<T>;
  for (const Case& c : cases) {
    const Data<T> data(c);
    std::vector<A> mean(c.rows), rstd(c.rows);
    std::vector<Result> dx, dweight(c.width, {1, 1}), dbias(c.width, {1, 1}), sum(c.width, {1, 1});
    for (std::int64_t row = 0; row < c.rows; ++row) {
      double m, r;
      data.statistics(row, m, r);
      mean[row] = static_cast<A>(m);
      rstd[row] = static_cast<A>(r);
      Result g_sum, gn_sum;
      for (std::int64_t i = 0; i < c.width; ++i) {
        const double x = data.x[row * c.width + i], dy = data.dy[row * c.width + i], n = (x - m) * r;
        const double n_size = (std::abs(x) + std::abs(m)) * r, g = dy * data.weight[i];
        if (!c.rms) g_sum.add(g);
        gn_sum.value += g * n;
        gn_sum.magnitude += std::abs(g) * n_size;
        dweight[i].value += dy * n;
        dweight[i].magnitude += std::abs(dy) * n_size;
        dbias[i].add(dy);
      }
      const double width = static_cast<double>(c.width);
      for (std::int64_t i = 0; i < c.width; ++i) {
        const double x = data.x[row * c.width + i], n = (x - m) * r, n_size = (std::abs(x) + std::abs(m)) * r;
        const double g = data.dy[row * c.width + i] * data.weight[i];
        const double along = c.residual ? double(data.residual[row * c.width + i]) : 0;
        sum[i].add(along);
        dx.push_back(
            {r * (g - g_sum.value / width - n * gn_sum.value / width) + along,
             r * (std::abs(g) + g_sum.magnitude / width + n_size * gn_sum.magnitude / width) + std::abs(along)});
      }
    }
    on_every_target([&](Cpu cpu) {
      // dx in place of the residual, gradients added to ones.
      std::vector<T> out = c.residual ? data.residual : std::vector<T>(data.x.size());
      std::vector<A> out_weight(c.width, 1), out_bias(c.width, 1), out_sum(c.width, 1);
      std::vector<std::byte> workspace(norm_backward_workspace_bytes<T>(cpu, c.rows, c.width));
      norm_backward(cpu, NormBackward<T>{.dy = data.dy.data(),
                                         .x = data.x.data(),
                                         .weight = data.weight.data(),
                                         .mean = c.rms ? nullptr : mean.data(),
                                         .rstd = rstd.data(),
                                         .residual = c.residual ? out.data() : nullptr,
                                         .dx = out.data(),
                                         .dweight = out_weight.data(),
                                         .dbias = c.bias ? out_bias.data() : nullptr,
                                         .residual_sum = c.residual ? out_sum.data() : nullptr,
                                         .rows = c.rows,
                                         .width = c.width,
                                         .workspace = workspace.data()});
      expect_close(out.data(), dx, roundings(c.width), "dx");
      expect_close(out_weight.data(), dweight, roundings(c.rows), "dweight");
      if (c.bias) expect_close(out_bias.data(), dbias, roundings(c.rows), "dbias");
      expect_close(out_sum.data(), sum, roundings(c.rows), "sum of residual");
    });
  }
}

TEST(NormGradient, AgreesWithFiniteDifferences) {
  for (const bool rms : {false, true}) {
    Data<double> data({3, 17, rms, true, false});
    const Cpu cpu;
    std::vector<double> y(data.x.size()), mean(3), rstd(3), dx(data.x.size()), dweight(17), dbias(17);
    const auto loss = [&] {
      norm_forward(cpu, data.forward(y.data(), mean.data(), rstd.data()));
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * data.dy[i];
      return sum;
    };
    loss();
    std::vector<std::byte> workspace(norm_backward_workspace_bytes<double>(cpu, 3, 17));
    norm_backward(cpu, NormBackward<double>{.dy = data.dy.data(),
                                            .x = data.x.data(),
                                            .weight = data.weight.data(),
                                            .mean = rms ? nullptr : mean.data(),
                                            .rstd = rstd.data(),
                                            .dx = dx.data(),
                                            .dweight = dweight.data(),
                                            .dbias = dbias.data(),
                                            .rows = 3,
                                            .width = 17,
                                            .workspace = workspace.data()});
    for (std::size_t i = 0; i < dx.size(); ++i) {
      EXPECT_NEAR(dx[i], finite_difference(data.x[i], loss), finite_difference_bound) << i;
    }
    for (std::size_t i = 0; i < dweight.size(); ++i) {
      EXPECT_NEAR(dweight[i], finite_difference(data.weight[i], loss), finite_difference_bound) << i;
      EXPECT_NEAR(dbias[i], finite_difference(data.bias[i], loss), finite_difference_bound) << i;
    }
  }
}

}  // namespace
}  // namespace choir::kernels::tests
