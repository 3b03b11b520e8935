// Products of 8 bits in every layout. A row that several ranks have parts of is rounded as one rank rounds it, and
// gradients are those of one rank.
//
// A scale is a power of two, so it decides only about numbers far below the largest of their row, which lose digits of
// their three. The first test has such numbers, and weights that leave nothing else in the sum.
#include <gtest/gtest.h>

#include <cmath>

#include "framework/nn/linear.h"
#include "kernels/fp8.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

/// What a product sums over: `per_rank` numbers on each rank. Rank 0 has the largest number of every row of x and of w,
/// at places where the other factor is zero; the others have numbers 2^-16 as large.
struct Factors {
  static constexpr std::int64_t n = 6, out = 16, per_rank = 16;
  std::int64_t k = per_rank * world_size();
  std::vector<bf16> x = std::vector<bf16>(n * k), w = std::vector<bf16>(out * k);

  Factors() {
    for (std::int64_t i = 0; i < k; ++i) {
      const bool small = i >= per_rank || world_size() == 1;
      for (std::int64_t row = 0; row < n; ++row)
        x[row * k + i] =
            bf16(small ? std::ldexp(1.0f + 0.13f * static_cast<float>((row * 5 + i * 3) % 7), -16) : i == 0);
      for (std::int64_t row = 0; row < out; ++row)
        w[row * k + i] = bf16(small ? std::ldexp(1.0f + 0.11f * static_cast<float>((row * 3 + i) % 9), -16) : i == 1);
    }
  }
  static double rounded(bf16 number, float scale) {
    return static_cast<double>(kernels::value_of_e4m3(kernels::to_e4m3(static_cast<float>(number) / scale))) *
           static_cast<double>(scale);
  }
  static float scale_of(const bf16* row, std::int64_t count) {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < count; ++i) largest = std::max<std::uint32_t>(largest, row[i].bits & 0x7fffu);
    return kernels::scale_of(kernels::scale_exponent(largest));
  }
  /// x w^T of whole rows, rounded as one rank rounds them.
  std::vector<double> product() const {
    std::vector<double> y(n * out);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < out; ++j)
        for (std::int64_t p = 0; p < k; ++p)
          y[i * out + j] +=
              rounded(x[i * k + p], scale_of(&x[i * k], k)) * rounded(w[j * k + p], scale_of(&w[j * k], k));
    return y;
  }
  /// Columns [first, first + per_rank) of a matrix of rows of k, or of its transpose.
  std::vector<bf16> part(const std::vector<bf16>& of, std::int64_t rows, int rank, bool transposed) const {
    std::vector<bf16> held(rows * per_rank);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t i = 0; i < per_rank; ++i)
        held[transposed ? i * rows + row : row * per_rank + i] = of[row * k + rank * per_rank + i];
    return held;
  }
};

TEST(Fp8, ARowInPartsOnSeveralRanksIsRoundedAsAWhole) {
  const auto device = make_device();
  if (const std::string reason = reason_to_skip_fp8(*device); !reason.empty()) GTEST_SKIP() << reason;
  CallRing ring;
  Mesh mesh = make_mesh(MPI_COMM_WORLD, {.tensor = world_size()}, *device, ring);
  Runtime runtime{.device = *device, .compute_type = DType::bf16};
  Context context{.runtime = runtime, .mesh = mesh, .fp8 = true};
  const Factors factors;
  const int rank = world_rank();
  const TensorShare share{.rank = rank, .size = world_size()};
  const Slice held{rank * Factors::per_rank, (rank + 1) * Factors::per_rank};
  const auto on_device = [&](const std::vector<bf16>& values, std::int64_t rows) {
    return ops::to_device(runtime, values, DType::bf16)
        .reshape({rows, static_cast<std::int64_t>(values.size()) / rows});
  };
  const Tensor x = on_device(factors.part(factors.x, factors.n, rank, false), factors.n);

  ParameterStore of_row;  // w [out, k], its columns split
  const RowLinear row("row", Factors::out, factors.k, held, false, 0, share, of_row);
  of_row.weights().front().value = on_device(factors.part(factors.w, Factors::out, rank, false), Factors::out);
  ParameterStore of_column;  // w^T [k, out], its rows split: x is the gradient of its outputs
  const ColumnLinear column({{.name = "column", .outputs = factors.k, .held = held, .owned = held}}, Factors::out,
                            false, 0, of_column);
  of_column.weights().front().value = on_device(factors.part(factors.w, Factors::out, rank, true), Factors::per_rank);

  const std::vector<double> expected = factors.product();
  // All terms are positive: a rounding to bf16, of the parts or of their sum, is a relative error of the whole.
  const auto expect_product = [&](const std::vector<double>& sum, int roundings) {
    ASSERT_EQ(sum.size(), expected.size());
    for (std::size_t i = 0; i < sum.size(); ++i)
      EXPECT_NEAR(sum[i], expected[i], roundings * 1.01 * unit_roundoff(DType::bf16) * expected[i]) << i;
  };
  const auto values = [&](const Tensor& y) {
    const std::vector<bf16> here = host_values<bf16>(*device, y);
    return std::vector<double>(here.begin(), here.end());
  };
  expect_product(values(row.forward("row", x, context, "row")), 2);
  std::vector<double> sum = values(column.backward_input("column", x, context));
  MPI_Allreduce(MPI_IN_PLACE, sum.data(), static_cast<int>(sum.size()), MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  expect_product(sum, 1);
}

TEST(Fp8, GradientsOfEveryLayoutAreThoseOfOneRank) {
  if (const std::string reason = reason_to_skip_fp8(*make_device()); !reason.empty()) GTEST_SKIP() << reason;
  for (const char* name : {"five_heads", "shared_experts", "pairs"}) {
    if ((device_is_simulated() || world_size() > 2) && name != std::string("five_heads")) continue;
    const ModelConfig model = small_model(name);
    const double bound = rounding_bound_of_8_bits(model, batch * model.context);
    const auto alone = run_alone(model, plain_sgd(0.1), Precision::fp8);
    alone->compute_gradients();
    const Tensors gradients = alone->gradients();
    if (world_size() == 1) {  // one of the two rounds to 8 bits, but both factors of each product: as many errors
      const auto bf16 = run_alone(model, plain_sgd(0.1), Precision::bf16);
      bf16->replay(*alone);
      bf16->compute_gradients();
      expect_holds(compare("gradient in fp8 and bf16 of ", bf16->gradients(), gradients, bound));
    }
    for (const Layout& layout : layouts(world_size(), model)) {
      // Where ranks do not cut a sum or a sequence, every number is that of one rank: one model shows it.
      if (layout.tensor == 1 && layout.context == 1 && name != std::string("five_heads")) continue;
      SCOPED_TRACE(name + (", " + layout.name));
      Config config = small_config(model, plain_sgd(0.1), layout);
      config.train.precision = Precision::fp8;
      SmallRun run(config);
      run.replay(*alone);
      run.compute_gradients();
      const double worst = expect_holds(compare("fp8 gradient of ", gradients, run.gradients(), bound));
      ::testing::Test::RecordProperty(name + (", " + layout.name), std::to_string(worst));
    }
  }
}

}  // namespace
}  // namespace choir::tests
