// The linear layer's operations on the simulated GPU: fused into the products, the same if cuBLASLt refuses to fuse,
// and on device `count`.
//
// With u half a unit in the last place of 1 in the elements' type T, v in f32, and s a sum of k products whose absolute
// values add up to S, the error of a product is e = (k + 2) v S. The fused and the separate results differ by twice
// that, times the slope of gelu, at most 1.13, and by the rounding of each to T. If they are separate, the kernel of
// the activation reads s rounded to T: 1.13 u |s| in the activation and u |s gelu'| in its gradient; its formula is
// accurate to 40 v |s| (activation_cuda_test.cpp: the error of exp grows with its argument, but there the gate is
// small).
#include <cmath>

#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "tests/simgpu/agreement.h"
#include "tests/simgpu/cublas_lt.h"

namespace choir::simgpu::tests {
namespace {

constexpr std::int64_t rows = 13, width = 16;

struct Outcome {
  std::vector<double> before, active, dbefore, dweight, dbias;
  std::vector<std::string> operations;
  double flops = 0;
  std::int64_t peak = 0;
};

template <class T>
std::vector<double> values_of(Device& device, const Tensor& tensor) {
  std::vector<T> host(static_cast<std::size_t>(tensor.count()));
  device.download(tensor.raw(), host.data(), tensor.bytes());
  return {host.begin(), host.end()};
}

/// The operations of a feed-forward layer of `hidden` features, each on its own inputs.
template <class T>
Outcome outcome(Device& device, std::int64_t hidden) {
  constexpr DType type = dtype_of<T>;
  Runtime runtime{.device = device, .compute_type = type};
  unsigned seed = 0;
  const auto random = [&]<class Element>(Element, std::int64_t m, std::int64_t n) {
    return ops::to_device(runtime, random_values<Element>(m * n, ++seed), dtype_of<Element>).reshape({m, n});
  };
  const Tensor x = random(T{}, rows, width), dy = random(T{}, rows, width), dhidden = random(T{}, rows, hidden);
  const Tensor up = random(T{}, hidden, width), down = random(T{}, width, hidden);
  const Tensor given = random(T{}, rows, hidden);
  const Tensor bias = random(T{}, 1, hidden).reshape({hidden}), dbias = random(float{}, 1, hidden);
  const Tensor dweight = random(float{}, hidden, width);
  device.ledger().enabled = true;
  device.allocator().reset_peak();

  Outcome o;
  Tensor before;
  const Tensor active = ops::linear_activation(runtime, "up", ops::Activation::gelu, x, up, bias, before);
  const Tensor dbefore = ops::linear_input_gradient_activation(runtime, "down", ops::Activation::gelu, dy, down, given);
  ops::linear_weight_gradient(runtime, "weight", dhidden, x, dweight, dbias.reshape({hidden}));
  o.before = values_of<T>(device, before);
  o.active = values_of<T>(device, active);
  o.dbefore = values_of<T>(device, dbefore);
  o.dweight = values_of<float>(device, dweight);
  o.dbias = values_of<float>(device, dbias);
  device.synchronize();
  for (const Ledger::Operation& operation : device.ledger().operations()) o.operations.push_back(operation.name);
  o.flops = device.ledger().total_flops();
  o.peak = device.allocator().at_peak().total();
  return o;
}

using LinearCuda = CudaTest;
using Names = std::vector<std::string>;

/// |a - b| <= bound(i)
template <class Bound>
void expect_near(const std::vector<double>& a, const std::vector<double>& b, const Bound& bound, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], bound(i)) << what << " [" << i << "]";
}

template <class T>
void fused_and_apart_agree(std::int64_t hidden) {
  SCOPED_TRACE(std::to_string(hidden) + " features of " + std::to_string(sizeof(T)) + " bytes");
  const auto on_gpu = [&] {
    Device device(GpuOptions{}, 1);
    const Outcome computed = outcome<T>(device, hidden);
    Device like_it(count_like(device), 1);
    const Outcome counted = outcome<T>(like_it, hidden);
    EXPECT_EQ(counted.operations, computed.operations);
    EXPECT_EQ(counted.flops, computed.flops);
    EXPECT_EQ(counted.peak, computed.peak);
    return computed;
  };
  const Outcome fused = on_gpu();
  refuse_epilogues(true);
  const Outcome apart = on_gpu();
  refuse_epilogues(false);
  Device counting(CountOnly{DeviceKind::cuda}, 1);  // by the documentation alone
  const Outcome counted = outcome<T>(counting, hidden);

  const bool fuses_gelu = hidden % 8 == 0;  // cuBLASLt's rule for the values before the activation
  EXPECT_EQ(fused.operations, fuses_gelu
                                  ? Names({"up", "down", "weight"})
                                  : Names({"up", "activation forward", "down", "activation backward", "weight"}));
  EXPECT_EQ(apart.operations,
            Names({"up", "activation forward", "down", "activation backward", "weight", "bias gradient"}));
  EXPECT_EQ(fused.flops, apart.flops) << "each operation is counted once, fused or not";
  EXPECT_EQ(counted.operations, fused.operations);
  EXPECT_EQ(counted.flops, fused.flops);
  EXPECT_EQ(counted.peak, fused.peak);

  // The sums' own magnitudes, in double.
  unsigned seed = 0;
  const auto random = [&]<class Element>(Element, std::int64_t count) {
    const auto values = random_values<Element>(count, ++seed);
    return std::vector<double>(values.begin(), values.end());
  };
  const auto x = random(T{}, rows * width), dy = random(T{}, rows * width), dhidden = random(T{}, rows * hidden);
  const auto up = random(T{}, hidden * width), down = random(T{}, width * hidden), given = random(T{}, rows * hidden);
  const auto bias = random(T{}, hidden), dbias = random(float{}, hidden), dweight = random(float{}, hidden * width);
  const double u = half_ulp<T>(), v = half_ulp<float>(), k = width + 2, n = rows + 2;
  std::vector<double> e(fused.before.size()), magnitude_t(e.size()), t(e.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < hidden; ++j) {
      const auto at = static_cast<std::size_t>(r * hidden + j);
      double magnitude = std::abs(bias[static_cast<std::size_t>(j)]);
      for (std::int64_t p = 0; p < width; ++p) {
        magnitude += std::abs(x[static_cast<std::size_t>(r * width + p)] * up[static_cast<std::size_t>(j * width + p)]);
        const double term =
            dy[static_cast<std::size_t>(r * width + p)] * down[static_cast<std::size_t>(p * hidden + j)];
        t[at] += term;
        magnitude_t[at] += std::abs(term);
      }
      e[at] = k * v * magnitude;
    }
  constexpr double slope = 1.13, slack = 1 + 1e-2;  // for errors of errors
  expect_near(
      fused.before, apart.before, [&](std::size_t i) { return slack * (2 * e[i] + 2 * u * std::abs(apart.before[i])); },
      "before");
  expect_near(
      fused.active, apart.active,
      [&](std::size_t i) {
        const double s = std::abs(apart.before[i]);
        return slack * (2 * slope * e[i] + slope * u * s + 2 * u * std::abs(apart.active[i]) + 40 * v * s);
      },
      "active");
  expect_near(
      fused.dbefore, apart.dbefore,
      [&](std::size_t i) {
        return slack *
               (2 * slope * k * v * magnitude_t[i] + 3 * u * std::abs(apart.dbefore[i]) + 40 * v * std::abs(t[i]));
      },
      "dbefore");
  expect_near(
      fused.dweight, apart.dweight,
      [&](std::size_t i) {
        double magnitude = std::abs(dweight[i]);
        for (std::int64_t r = 0; r < rows; ++r)
          magnitude += std::abs(dhidden[static_cast<std::size_t>(r * hidden) + i / width] *
                                x[static_cast<std::size_t>(r * width) + i % width]);
        return 2 * n * v * magnitude;
      },
      "dweight");
  expect_near(
      fused.dbias, apart.dbias,
      [&](std::size_t i) {
        double magnitude = std::abs(dbias[i]);
        for (std::int64_t r = 0; r < rows; ++r)
          magnitude += std::abs(dhidden[static_cast<std::size_t>(r * hidden) + i]);
        return 2 * n * v * magnitude;
      },
      "dbias");
}

TEST_P(LinearCuda, FusedAndApartAgreeAndCountIsLikeTheGpu) {
  for (const std::int64_t hidden : {24, 20}) {
    fused_and_apart_agree<float>(hidden);
    fused_and_apart_agree<bf16>(hidden);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, LinearCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
