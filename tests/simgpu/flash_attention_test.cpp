// Flash attention on the GPU against the CPU: every mask, group, edge and alignment. A new case is one more line in
// `cases`.
//
// Error model. The error of a score is u sqrt(width) times its own magnitude, which is the relative error of a
// probability; the error of a result that sums n products of probabilities is therefore
//   4 u sqrt(n + width) (1 + largest score magnitude) * its magnitude,   plus its own rounding to T
// (tests/kernels/attention_test.cpp; u = half_ulp<float>(), and 4 standard deviations of a sum of random roundings).
// If T is bf16 the GPU also rounds the probabilities and their slopes: half_ulp<bf16>() of the magnitude at most.
#include "kernels/cuda/flash_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "tests/kernels/attention_case.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::AttentionBackward;
using kernels::AttentionForward;
using kernels::AttentionShape;
using kernels::causal_band;
using kernels::full_band;

struct Case : kernels::tests::AttentionCase {
  kernels::Score score{};
  kernels::Documents documents{};  // on the CPU
  kernels::AttentionDropout dropout{};
};

const Case cases[] = {
    {"one of everything", 1, 1, 1, 1, 1, 1, 1, 0, causal_band(1, 1)},
    {"causal, two sequences", 2, 70, 70, 2, 2, 32, 1, 0, causal_band(70, 70)},
    {"no mask", 1, 65, 65, 1, 1, 25, 1, 0, full_band()},
    {"whole tiles", 1, 64, 128, 1, 1, 64, 1, 0, full_band()},
    {"causal window", 1, 150, 150, 1, 1, 16, 1, 0, causal_band(150, 150, 37)},
    {"causal window of one", 1, 17, 17, 1, 1, 8, 1, 0, causal_band(17, 17, 1)},
    {"two-sided window", 1, 130, 130, 1, 1, 8, 1, 0, {-19, 19}},
    {"window wider than the sequence", 1, 17, 17, 1, 1, 8, 1, 0, causal_band(17, 17, 1000)},
    {"groups of three", 1, 17, 17, 6, 2, 16, 3, 0, causal_band(17, 17)},
    {"a rank that starts inside a group", 2, 17, 17, 5, 3, 16, 3, 2, causal_band(17, 17)},
    {"key/value heads that no query reads", 1, 17, 17, 2, 4, 8, 1, 1, causal_band(17, 17)},
    {"more keys: a cache before the queries", 1, 5, 120, 2, 1, 36, 2, 0, causal_band(5, 120)},
    {"one query, long cache", 1, 1, 200, 1, 1, 16, 1, 0, causal_band(1, 200)},
    {"more queries: the first see nothing", 1, 100, 30, 1, 1, 16, 1, 0, causal_band(100, 30)},
    {"more queries, window", 1, 150, 70, 1, 1, 16, 1, 0, {-99, -61}},
    {"cross-attention", 1, 17, 70, 2, 2, 24, 1, 0, full_band()},
    {"80 features", 1, 33, 33, 1, 1, 80, 1, 0, causal_band(33, 33)},
    {"128 features", 1, 40, 40, 1, 1, 128, 1, 0, causal_band(40, 40)},
    {"200 features", 1, 33, 40, 1, 1, 200, 1, 0, causal_band(33, 40)},
    {"256 features", 1, 17, 17, 1, 1, 256, 1, 0, full_band()},
};

constexpr float untouched = 77;  // between the rows: exact in bf16

/// Inputs and results of one case: k and v in one fused buffer, and a gap of 8 elements after each token of every
/// tensor.
template <class T>
struct Problem {
  AttentionShape shape;
  std::int64_t v_offset;
  std::vector<T> q, kv, out, dout, dq, dkv;
  std::vector<float> lse;

  explicit Problem(const Case& c)
      : shape(kernels::tests::shape_of(c, 8, 8, 8)),
        v_offset(c.kv_heads * c.width),
        q(rows(c.q_length, shape.q_stride, 1)),
        kv(rows(c.kv_length, shape.k_stride, 2)),
        out(q.size(), T(untouched)),
        dout(rows(c.q_length, shape.out_stride, 3)),
        dq(q.size(), T(untouched)),
        dkv(kv.size(), T(untouched)),
        lse(static_cast<std::size_t>(c.batch * c.heads * c.q_length), untouched) {
    shape.score = c.score;
    shape.documents = c.documents;
    shape.dropout = c.dropout;
  }

  std::vector<T> rows(std::int64_t length, std::int64_t stride, unsigned seed) const {
    return random_values<T>(shape.batch * length * stride, seed);
  }

  AttentionForward<T> forward() {
    return {
        .shape = shape, .q = q.data(), .k = kv.data(), .v = kv.data() + v_offset, .out = out.data(), .lse = lse.data()};
  }
  AttentionBackward<T> backward() {
    return {.shape = shape,
            .q = q.data(),
            .k = kv.data(),
            .v = kv.data() + v_offset,
            .out = out.data(),
            .dout = dout.data(),
            .lse = lse.data(),
            .dq = dq.data(),
            .dk = dkv.data(),
            .dv = dkv.data() + v_offset};
  }
};

/// On the CPU: out, lse and the gradients.
template <class T>
void solve(Problem<T>& p) {
  std::vector<double> workspace(std::max(kernels::attention_forward_workspace_bytes<T>(Cpu{}, p.shape),
                                         kernels::attention_backward_workspace_bytes<T>(Cpu{}, p.shape)) /
                                    8 +
                                9);
  void* aligned = workspace.data();
  std::size_t space = workspace.size() * 8;
  std::align(64, space - 64, aligned, space);
  AttentionForward<T> forward = p.forward();
  forward.workspace = aligned;
  attention_forward(Cpu{}, forward);
  AttentionBackward<T> backward = p.backward();
  backward.workspace = aligned;
  attention_backward(Cpu{}, backward);
}

/// On the GPU: the same results. Backward reads out and lse of `p`, which the CPU computed: both backward passes have
/// the same inputs, and both must define lse alike.
template <class T>
Problem<T> solve_on_gpu(kernels::Cuda cuda, const Problem<T>& p, std::int64_t offset) {
  Problem<T> result = p;
  const DeviceArray<T> q(p.q, offset), kv(p.kv, offset), out(std::vector<T>(p.out.size(), T(untouched)), offset);
  const DeviceArray<float> lse(static_cast<std::int64_t>(p.lse.size()));
  const kernels::Documents& documents = p.shape.documents;
  const DeviceArray<std::int32_t> ranges(
      documents.separate
          ? std::vector<std::int32_t>(&documents.ranges->begin,
                                      &documents.ranges->begin + 2 * p.shape.batch * documents.heads * documents.length)
          : std::vector<std::int32_t>(1));
  const DeviceArray<kernels::StepScalars> scalars({kernels::tests::dropout_step});
  AttentionForward<T> forward = result.forward();
  forward.shape.dropout.scalars = scalars.data();
  forward.shape.documents.ranges = reinterpret_cast<const kernels::DocumentRange*>(ranges.data());
  forward.q = q.data();
  forward.k = kv.data();
  forward.v = kv.data() + p.v_offset;
  forward.out = out.data();
  forward.lse = lse.data();
  kernels::cuda::flash_forward(cuda, forward);

  const DeviceArray<T> dout(p.dout, offset), dq(std::vector<T>(p.dq.size(), T(untouched)), offset);
  const DeviceArray<T> dkv(std::vector<T>(p.dkv.size(), T(untouched)), offset), known_out(p.out, offset);
  const DeviceArray<float> known_lse(p.lse);
  const DeviceArray<std::uint8_t> workspace(kernels::cuda::flash_backward_workspace_bytes<T>(p.shape));
  AttentionBackward<T> backward = result.backward();
  backward.shape.documents = forward.shape.documents;
  backward.shape.dropout = forward.shape.dropout;
  backward.q = q.data();
  backward.k = kv.data();
  backward.v = kv.data() + p.v_offset;
  backward.out = known_out.data();
  backward.dout = dout.data();
  backward.lse = known_lse.data();
  backward.dq = dq.data();
  backward.dk = dkv.data();
  backward.dv = dkv.data() + p.v_offset;
  backward.workspace = workspace.data();
  kernels::cuda::flash_backward(cuda, backward);

  result.out = out.host();
  result.lse = lse.host();
  result.dq = dq.host();
  result.dkv = dkv.host();
  return result;
}

/// For each element of the results, the sum of the absolute values of the terms of its formula.
template <class T>
struct Magnitudes {
  std::vector<double> out, dq, dkv;
  double largest_score = 0;

  explicit Magnitudes(const Problem<T>& p) : out(p.out.size()), dq(p.dq.size()), dkv(p.dkv.size()) {
    const AttentionShape& s = p.shape;
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t i = 0; i < s.q_length; ++i)
          for (std::int64_t j = 0; j < s.kv_length; ++j)
            if (kernels::tests::sees(s, b, h, i, j)) pair(p, b, h, i, j);
  }

  void pair(const Problem<T>& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    const AttentionShape& s = p.shape;
    const std::int64_t query = (b * s.q_length + i) * s.q_stride + h * s.head_width;
    const std::int64_t key = (b * s.kv_length + j) * s.k_stride + (h + s.group_offset) / s.group_size * s.head_width;
    const double factor = kernels::tests::drop_factor(s, b, h, i, j);
    double score = 0, score_magnitude = 0, slope = 0;  // slope: |dp| + |delta|
    for (std::int64_t e = 0; e < s.head_width; ++e) {
      const double product = double{p.q[query + e]} * p.kv[key + e];
      score += product;
      score_magnitude += std::abs(product);
      slope += factor * std::abs(double{p.dout[query + e]} * p.kv[key + p.v_offset + e]) +
               std::abs(double{p.dout[query + e]} * p.out[query + e]);
    }
    const auto defined = kernels::tests::defined_score(s.score, s.scale * score, h, i, j);
    largest_score = std::max(largest_score, s.scale * score_magnitude + defined.magnitude);
    slope *= 2 - defined.derivative;  // which is 1 - t^2: both terms count
    const double probability = std::exp(defined.value - p.lse[(b * s.heads + h) * s.q_length + i]);
    for (std::int64_t e = 0; e < s.head_width; ++e) {
      out[query + e] += factor * probability * std::abs(p.kv[key + p.v_offset + e]);
      dq[query + e] += s.scale * probability * slope * std::abs(p.kv[key + e]);
      dkv[key + e] += s.scale * probability * slope * std::abs(p.q[query + e]);
      dkv[key + p.v_offset + e] += factor * probability * std::abs(p.dout[query + e]);
    }
  }
};

template <class T>
void agrees(kernels::Cuda cuda, const Case& c, std::int64_t offset) {
  Problem<T> of_cpu(c);
  solve(of_cpu);
  const Problem<T> of_gpu = solve_on_gpu(cuda, of_cpu, offset);
  const Magnitudes<T> m(of_cpu);
  const AttentionShape& s = of_cpu.shape;
  // expect_agreement counts in units of half_ulp<float>(), and allows its bound for each of the two results.
  const double of_probabilities = std::is_same_v<T, bf16> ? half_ulp<bf16>() / half_ulp<float>() / 2 : 0;
  const auto roundings = [&](std::int64_t terms) {
    return 4 * std::sqrt(static_cast<double>(terms + s.head_width)) * (1 + m.largest_score) + of_probabilities;
  };
  std::vector<double> of_lse;
  for (const float lse : of_cpu.lse) of_lse.push_back(1 + (std::isinf(lse) ? 0.0 : std::abs(lse)));
  for (std::size_t n = 0; n < of_lse.size(); ++n) {
    if (std::isinf(of_cpu.lse[n])) {
      ASSERT_EQ(of_gpu.lse[n], of_cpu.lse[n]) << "lse [" << n << "]";
    } else {
      ASSERT_NEAR(of_gpu.lse[n], of_cpu.lse[n],
                  8 * half_ulp<float>() * std::sqrt(static_cast<double>(s.kv_length + s.head_width)) *
                      (1 + m.largest_score) * of_lse[n])
          << "lse [" << n << "]";
    }
  }
  // If a result is exactly 0 or untouched, its magnitude is 0, and so is its bound.
  expect_agreement(of_gpu.out, of_cpu.out, m.out, roundings(s.kv_length), "out");
  expect_agreement(of_gpu.dq, of_cpu.dq, m.dq, roundings(s.kv_length), "dq");
  expect_agreement(of_gpu.dkv, of_cpu.dkv, m.dkv, roundings(s.q_length * s.group_size), "dk and dv");
}

struct FlashAttention : CudaTest {};

TEST_P(FlashAttention, AgreesWithTheCpu) {
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    agrees<float>(cuda(), c, 0);
    agrees<bf16>(cuda(), c, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuUnderEveryBand) {
  for (const auto& [name, q_length, kv_length, band] : kernels::tests::band_cases) {
    SCOPED_TRACE(name);
    agrees<float>(cuda(), {name, 1, q_length, kv_length, 2, 1, 8, 2, 0, band}, 0);
    agrees<bf16>(cuda(), {name, 1, q_length, kv_length, 1, 1, 16, 1, 0, band}, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuOnEveryScore) {
  for (const auto& [name, score] : kernels::tests::score_cases) {
    SCOPED_TRACE(name);
    agrees<float>(cuda(), {{name, 1, 70, 97, 3, 2, 16, 2, 1, causal_band(70, 97)}, score}, 0);
    agrees<bf16>(cuda(), {{name, 1, 70, 97, 3, 2, 16, 2, 1, causal_band(70, 97)}, score}, 0);
    agrees<bf16>(cuda(), {{name, 1, 33, 40, 1, 1, 132, 1, 0, {-9, 20}}, score}, 1);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuWithinDocuments) {
  for (const auto& [name, q_length, kv_length, length, first_query, first_key, mean, band] :
       kernels::tests::document_cases) {
    SCOPED_TRACE(name);
    const std::vector<kernels::DocumentRange> ranges = kernels::tests::random_documents(1, length, mean);
    const kernels::Documents documents{true, ranges.data(), length, first_query, first_key};
    agrees<float>(cuda(), {{name, 1, q_length, kv_length, 2, 1, 8, 2, 0, band}, {}, documents}, 0);
    agrees<bf16>(cuda(), {{name, 1, q_length, kv_length, 1, 1, 16, 1, 0, band}, {.soft_cap = 2}, documents}, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuIfHeadsHaveRangesOfTheirOwn) {
  for (const auto& [name, slots, keys, window, rarity] : kernels::tests::head_ranges_cases) {
    SCOPED_TRACE(name);
    const auto [ranges, documents] = kernels::tests::ranges_of_heads(1, 3, slots, keys, window, rarity);
    agrees<float>(cuda(), {{name, 1, slots, keys, 3, 2, 8, 2, 1, full_band()}, {}, documents}, 0);
    agrees<bf16>(cuda(), {{name, 1, slots, keys, 3, 2, 16, 2, 1, full_band()}, {}, documents}, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuUnderDropout) {
  for (const auto& [name, q_length, kv_length, dropout, band] : kernels::tests::dropout_cases) {
    SCOPED_TRACE(name);
    agrees<float>(cuda(), {{name, 1, q_length, kv_length, 3, 2, 8, 2, 1, band}, {}, {}, dropout}, 0);
    agrees<bf16>(cuda(), {{name, 2, q_length, kv_length, 1, 1, 16, 1, 0, band}, {.soft_cap = 2}, {}, dropout}, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, AgreesWithTheCpuAtMisalignedAddresses) {
  for (const Case& c : {Case{"", 2, 17, 70, 3, 2, 16, 2, 1, causal_band(17, 70)},
                        Case{"", 1, 17, 17, 1, 1, 132, 1, 0, causal_band(17, 17)}}) {
    SCOPED_TRACE(std::to_string(c.width) + " features");
    agrees<float>(cuda(), c, 1);
    agrees<bf16>(cuda(), c, 1);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FlashAttention, GivesTheSameBitsInEveryOrder) {
  const Case c{"", 1, 17, 70, 3, 2, 24, 2, 1, causal_band(17, 70)};
  const auto same_bits = [&]<class T>() {
    Problem<T> p(c);
    solve(p);
    std::vector<Problem<T>> results;
    for (const unsigned seed : {1u, 2u}) {
      cudaStreamDestroy(stream);
      configure({.compute_capability = GetParam(), .seed = seed});
      kernels::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
      results.push_back(solve_on_gpu(cuda(), p, 0));
    }
    expect_equal(results[0].out, results[1].out, "out");
    expect_equal(results[0].lse, results[1].lse, "lse");
    expect_equal(results[0].dq, results[1].dq, "dq");
    expect_equal(results[0].dkv, results[1].dkv, "dk and dv");
  };
  same_bits.operator()<float>();
  same_bits.operator()<bf16>();
}

TEST_P(FlashAttention, LaterTokensChangeNoBitOfEarlierOnes) {
  Problem<bf16> p({"", 1, 70, 70, 1, 1, 16, 1, 0, causal_band(70, 70)});
  solve(p);
  const std::vector<bf16> before = solve_on_gpu(cuda(), p, 0).out;
  const std::int64_t kept = 61;
  for (std::size_t n = kept * p.shape.k_stride; n < p.kv.size(); ++n) p.kv[n] = bf16(1e4f);
  const std::vector<bf16> after = solve_on_gpu(cuda(), p, 0).out;
  const auto first = [&](const std::vector<bf16>& values) {
    return std::vector<bf16>(values.begin(), values.begin() + kept * p.shape.out_stride);
  };
  expect_equal(first(after), first(before), "out");
  EXPECT_NE(static_cast<float>(after[kept * p.shape.out_stride]),
            static_cast<float>(before[kept * p.shape.out_stride]));
}

TEST_P(FlashAttention, NotANumberIsNotHidden) {
  Problem<float> p({"", 1, 40, 40, 1, 1, 8, 1, 0, causal_band(40, 40)});
  solve(p);
  p.kv[20 * p.shape.k_stride] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> out = solve_on_gpu(cuda(), p, 0).out;
  EXPECT_TRUE(std::isnan(out[30 * p.shape.out_stride]));
  EXPECT_FALSE(std::isnan(out[5 * p.shape.out_stride]));
}

TEST_P(FlashAttention, LargeScoresDoNotOverflow) {
  Problem<float> p({"", 1, 40, 40, 1, 1, 8, 1, 0, causal_band(40, 40)});
  for (auto* values : {&p.q, &p.kv})
    for (float& value : *values) value *= 100;
  solve(p);
  const Problem<float> of_gpu = solve_on_gpu(cuda(), p, 0);
  for (const float value : of_gpu.out) EXPECT_LT(std::abs(value), 500);
  for (const float value : of_gpu.dq) EXPECT_TRUE(std::isfinite(value));
  for (const float value : of_gpu.dkv) EXPECT_TRUE(std::isfinite(value));
}

INSTANTIATE_TEST_SUITE_P(Generations, FlashAttention, generations);

std::string refusal_of(const Case& c) {
  Problem<bf16> p(c);
  try {
    kernels::cuda::flash_forward({}, p.forward());
  } catch (const kernels::cuda::Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(FlashAttentionShapes, ImpossibleOnesAreErrorsThatSayWhy) {
  const auto says = [](const Case& c, const char* why) {
    const std::string refusal = refusal_of(c);
    EXPECT_NE(refusal.find(why), std::string::npos) << refusal;
  };
  says({"", 1, 4, 4, 4, 2, 8, 2, 1, causal_band(4, 4)},
       "query head 3 reads key/value head 2, but there are 2 (group_size 2, group_offset 1)");
  says({"", 1, 4, 4, 1, 1, 264, 1, 0, causal_band(4, 4)}, "a head of 264 features is wider than 256");
}

TEST(FlashAttentionShapes, TheWorkspaceIsLinearInTheSequence) {
  const auto bytes = [](std::int64_t length) {
    AttentionShape s = Problem<bf16>({"", 2, 1, 1, 3, 3, 64, 1, 0, causal_band(1, 1)}).shape;
    s.q_length = s.kv_length = length;
    return kernels::cuda::flash_backward_workspace_bytes<bf16>(s);
  };
  EXPECT_EQ(bytes(1000), 1000 * bytes(1));
}

}  // namespace
}  // namespace choir::simgpu::tests
