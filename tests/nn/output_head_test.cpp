// The output head in double against its formulas, with rows for several chunks and targets that do not count:
//   loss = sum over target rows of (log sum exp(x W^T) - (x W^T)[target]),  dx = scale (p - onehot) W,  dW = scale (p -
//   onehot)^T x
#include "framework/nn/output_head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "framework/ops/elementwise.h"
#include "framework/parallel/shards.h"
#include "kernels/philox.h"

namespace choir::tests {
namespace {

double uniform(std::uint64_t stream, std::int64_t i) {
  return kernels::philox_word(3, stream, static_cast<std::uint64_t>(i)) * 0x1p-31 - 1;
}

TEST(OutputHead, LossAndGradientsByFormulaOverSeveralChunks) {
  constexpr std::int64_t vocabulary = 70001, width = 4, rows = 530;
  constexpr double scale = 0.01;
  const std::int64_t chunk = OutputHead::chunk_rows({rows, vocabulary, vocabulary}, width, DeviceKind::cpu);
  ASSERT_GE(rows / chunk, 2) << "the case is about more than one chunk";
  ASSERT_NE(rows % chunk, 0) << "and about a last one that is shorter";

  CallRing ring;
  Device device(1);
  Mesh mesh = make_counting_mesh(0, {}, device, ring);
  Runtime runtime{.device = device, .compute_type = DType::f64};
  ParameterStore store;
  store.begin_group();
  const OutputHead head({"head.weight", vocabulary, width, 0.5f}, TensorShare{}, store);
  Context context{.runtime = runtime, .mesh = mesh, .rows = whole_rows(1, rows)};
  Shards shards(store, {}, context);
  shards.begin_step(context);
  const double* w = store.parameters()[0].value().data<double>();
  const double* dw = store.parameters()[0].gradient().data<double>();

  std::vector<double> x(static_cast<std::size_t>(rows * width));
  std::vector<std::int32_t> targets(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = uniform(1, static_cast<std::int64_t>(i));
  for (std::size_t r = 0; r < targets.size(); ++r)
    targets[r] = r % 5 == 3 ? -1 : static_cast<std::int32_t>(r * 7919 % vocabulary);
  const Tensor loss_sum = runtime.empty({1}, DType::f64);
  ops::fill(runtime, loss_sum, 0);
  const Tensor dx = head.loss(ops::to_device(runtime, x, DType::f64).reshape({rows, width}),
                              ops::to_device(runtime, targets, DType::i32), loss_sum, {}, scale, true, context);

  double loss = 0;
  std::vector<double> expected_dw(static_cast<std::size_t>(vocabulary * width)),
      p(static_cast<std::size_t>(vocabulary));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int32_t target = targets[static_cast<std::size_t>(r)];
    const double* xr = x.data() + r * width;
    double sum = 0, expected_dx[width] = {};
    for (std::int64_t v = 0; v < vocabulary && target >= 0; ++v) {
      double logit = 0;
      for (std::int64_t c = 0; c < width; ++c) logit += xr[c] * w[v * width + c];
      p[static_cast<std::size_t>(v)] = std::exp(logit);
      sum += p[static_cast<std::size_t>(v)];
    }
    for (std::int64_t v = 0; v < vocabulary && target >= 0; ++v) {
      const double d = scale * (p[static_cast<std::size_t>(v)] / sum - (v == target ? 1 : 0));
      for (std::int64_t c = 0; c < width; ++c) {
        expected_dx[c] += d * w[v * width + c];
        expected_dw[static_cast<std::size_t>(v * width + c)] += d * xr[c];
      }
    }
    if (target >= 0) loss += std::log(sum) - std::log(p[static_cast<std::size_t>(target)]);
    // Sums of 70001 terms below scale in double: 4 sqrt(n) u scale.
    for (std::int64_t c = 0; c < width; ++c)
      ASSERT_NEAR(dx.data<double>()[r * width + c], expected_dx[c], 1.2e-13 * scale)
          << "row " << r << ", target " << target;
  }
  EXPECT_NEAR(*loss_sum.data<double>(), loss, 1.2e-13 * loss);
  for (std::size_t i = 0; i < expected_dw.size(); ++i)
    ASSERT_NEAR(dw[i], expected_dw[i], 1.2e-13 * scale) << "dW " << i;
}

TEST(OutputHead, ChunksCoverFewAndManyRows) {
  constexpr std::int64_t many = std::int64_t{1} << 40;  // columns of all ranks: none of the rows come free
  for (const std::int64_t columns : {8, 1000, 50257, 200000, 10000000})
    for (const std::int64_t rows : {1, 7, 63, 64, 65, 1000, 100000}) {
      for (const auto& [device, width, least] : {std::tuple{DeviceKind::cpu, 384, 256},
                                                 {DeviceKind::cpu, 768, 512},
                                                 {DeviceKind::cpu, 4096, 1024},
                                                 {DeviceKind::cuda, 768, 8192}}) {
        const std::int64_t chunk = OutputHead::chunk_rows({rows, columns, many}, width, device);
        EXPECT_GE(chunk, std::min<std::int64_t>(rows, least));
        EXPECT_LE(chunk, rows);
        EXPECT_LE(chunk * columns, std::max<std::int64_t>(least * columns, (1 << 20) + 16 * columns))
            << rows << " x " << columns;
      }
    }
}

TEST(OutputHead, ChunksTakeTheMemoryThatABlockNeedsAnyway) {
  const auto chunk = [](const OutputHead::Logits& logits) {
    return OutputHead::chunk_rows(logits, 384, DeviceKind::cpu);
  };
  EXPECT_EQ(chunk({2048, 4096, 4096}), 1024);
  EXPECT_EQ(chunk({2048, 8192, 8192}), 6 * 2048 * 384 / 8192);
  EXPECT_EQ(chunk({2048, 4096, 8192}), 6 * 2048 * 384 / 8192) << "half of the columns: the block is divided, too";
  EXPECT_EQ(chunk({2048, 50257, 50257}), 256);
}

TEST(VocabularySlice, CoversEveryTokenOnceInEqualPaddedTables) {
  for (std::int64_t vocabulary : {1, 7, 37, 101, 50257})
    for (std::int64_t size = 1; size <= 5; ++size) {
      std::int64_t next = 0;
      for (std::int64_t rank = 0; rank < size; ++rank) {
        const VocabularySlice slice = vocabulary_slice(vocabulary, {.rank = rank, .size = size});
        EXPECT_EQ(slice.begin, next);
        next = slice.end;
        EXPECT_EQ(slice.rows % 8, 0);
        EXPECT_GE(slice.rows, slice.count());
        EXPECT_EQ(slice.rows, vocabulary_slice(vocabulary, {.rank = 0, .size = size}).rows);
      }
      EXPECT_EQ(next, vocabulary);
    }
}

}  // namespace
}  // namespace choir::tests
