// Attention against its formula in double precision, its gradient against finite differences, on every instruction set
// that this processor has. A new case is one more line in `cases`.
//
// Error model. The formula is evaluated together with the sum of the absolute values of everything that it adds
// ("magnitude"). With u = half a unit in the last place of 1, the error of a score is u sqrt(width) times its own
// magnitude, which is the relative error of a probability; the error of a result that sums n products of probabilities
// is therefore
//   4 u sqrt(n + width) (1 + largest score magnitude) * its magnitude,   plus its own rounding to T.
// 4 is the number of standard deviations allowed for sums of random roundings, and of steps that add their share.
#include "kernels/attention.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/kernels/attention_case.h"
#include "tests/kernels/tile_units.h"

namespace choir::kernels {
namespace {

struct Case : tests::AttentionCase {
  int threads;
  Score score{};
  Documents documents{};
  AttentionDropout dropout{};
};

const Case cases[] = {
    {"one of everything", 1, 1, 1, 1, 1, 1, 1, 0, causal_band(1, 1), 1},
    {"causal", 2, 100, 100, 2, 2, 64, 1, 0, causal_band(100, 100), 1},
    {"no mask", 1, 97, 97, 2, 2, 16, 1, 0, full_band(), 2},
    {"whole blocks", 1, 192, 192, 1, 1, 32, 1, 0, causal_band(192, 192), 1},
    {"causal window", 1, 250, 250, 2, 2, 20, 1, 0, causal_band(250, 250, 37), 2},
    {"causal window of one", 1, 70, 70, 1, 1, 8, 1, 0, causal_band(70, 70, 1), 1},
    {"two-sided window", 1, 230, 230, 1, 1, 8, 1, 0, {-49, 49}, 3},
    {"window wider than the sequence", 1, 50, 50, 1, 1, 8, 1, 0, causal_band(50, 50, 1000), 1},
    {"groups of three", 2, 60, 60, 6, 2, 16, 3, 0, causal_band(60, 60), 2},
    {"a rank that starts inside a group", 1, 60, 60, 5, 3, 16, 3, 2, causal_band(60, 60), 4},
    {"multi-query", 1, 130, 130, 5, 1, 20, 5, 0, causal_band(130, 130), 3},
    {"more keys: a cache before the queries", 1, 5, 120, 3, 3, 80, 1, 0, causal_band(5, 120), 2},
    {"one query, long cache", 2, 1, 300, 2, 1, 64, 2, 0, causal_band(1, 300), 2},
    {"more queries: the first see nothing", 1, 120, 30, 2, 2, 16, 1, 0, causal_band(120, 30), 2},
    {"more queries, window", 1, 200, 70, 2, 2, 16, 1, 0, {-149, -111}, 2},
    {"cross-attention", 2, 49, 113, 2, 2, 24, 1, 0, full_band(), 1},
    {"wide heads", 1, 51, 51, 1, 1, 128, 1, 0, causal_band(51, 51), 1},
    {"odd width", 1, 33, 33, 3, 3, 7, 1, 0, causal_band(33, 33), 2},
    {"more threads than heads", 1, 400, 400, 1, 1, 16, 1, 0, causal_band(400, 400), 5},
    {"more threads than blocks", 1, 20, 20, 2, 1, 8, 2, 0, causal_band(20, 20), 8},
    {"a key/value head that no query reads", 1, 20, 20, 2, 3, 8, 1, 1, causal_band(20, 20), 1},
};

template <class T>
constexpr double unit_roundoff = std::is_same_v<T, double>  ? 0x1p-53
                                 : std::is_same_v<T, float> ? 0x1p-24
                                                            : 0x1p-8;

constexpr float untouched = 77;  // between the rows: exact in bf16

/// Inputs, results and workspace of one case: q, k, v in one fused buffer with a gap after each token, out likewise.
template <class T>
struct Problem {
  AttentionShape shape;
  Cpu device;
  std::int64_t q_offset, k_offset, v_offset;
  std::vector<T> q, k, v, out, dout, dq, dk, dv;
  std::vector<Accumulate<T>> lse;
  const tests::AttentionKernels<T>* kernels = nullptr;  // to be used instead of those that attention.h chooses

  explicit Problem(const Case& c) : shape(tests::shape_of(c, 3, 5, 1)), device{.threads = c.threads} {
    std::mt19937 random(static_cast<unsigned>(c.q_length * 1000 + c.width));
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& values, std::int64_t length, std::int64_t stride, std::int64_t width) {
      values.assign(static_cast<std::size_t>(c.batch * length * stride), T(untouched));
      for (std::int64_t t = 0; t < c.batch * length; ++t) {
        for (std::int64_t e = 0; e < width; ++e) values[t * stride + e] = T(static_cast<Accumulate<T>>(normal(random)));
      }
    };
    shape.score = c.score;
    shape.documents = c.documents;
    shape.dropout = c.dropout;
    fill(q, c.q_length, shape.q_stride, c.heads * c.width);
    fill(k, c.kv_length, shape.k_stride, c.kv_heads * c.width);
    fill(v, c.kv_length, shape.v_stride, c.kv_heads * c.width);
    fill(dout, c.q_length, shape.out_stride, c.heads * c.width);
    out.assign(dout.size(), T(untouched));
    dq.assign(q.size(), T(untouched));
    dk.assign(k.size(), T(untouched));
    dv.assign(v.size(), T(untouched));
    lse.assign(static_cast<std::size_t>(c.batch * c.heads * c.q_length), untouched);
  }

  void use(const tests::AttentionKernels<T>& chosen) {
    kernels = &chosen;
    device.unit = chosen.unit;
  }

  void forward() {
    const std::int64_t bytes = kernels ? cpu::tile_attention_forward_workspace_bytes<T>(device, shape)
                                       : attention_forward_workspace_bytes<T>(device, shape);
    const auto workspace = not_numbers(bytes);
    (kernels ? kernels->forward : static_cast<void (*)(Cpu, const AttentionForward<T>&)>(attention_forward))(
        device, AttentionForward<T>{.shape = shape,
                                    .q = q.data(),
                                    .k = k.data(),
                                    .v = v.data(),
                                    .out = out.data(),
                                    .lse = lse.data(),
                                    .workspace = workspace.get()});
    expect_untouched(workspace, bytes);
  }

  void backward() {
    const std::int64_t bytes = kernels ? cpu::tile_attention_backward_workspace_bytes<T>(device, shape)
                                       : attention_backward_workspace_bytes<T>(device, shape);
    const auto workspace = not_numbers(bytes);
    (kernels ? kernels->backward : static_cast<void (*)(Cpu, const AttentionBackward<T>&)>(attention_backward))(
        device, AttentionBackward<T>{.shape = shape,
                                     .q = q.data(),
                                     .k = k.data(),
                                     .v = v.data(),
                                     .out = out.data(),
                                     .dout = dout.data(),
                                     .lse = lse.data(),
                                     .dq = dq.data(),
                                     .dk = dk.data(),
                                     .dv = dv.data(),
                                     .workspace = workspace.get()});
    expect_untouched(workspace, bytes);
  }

  /// A workspace full of NaN, so that a read of uninitialised memory shows, and 64 bytes more.
  static std::shared_ptr<void> not_numbers(std::int64_t bytes) {
    void* memory = std::aligned_alloc(64, static_cast<std::size_t>((bytes + 63) / 64 * 64 + 64));
    std::memset(memory, 0xff, static_cast<std::size_t>(bytes + 64));
    return {memory, std::free};
  }
  static void expect_untouched(const std::shared_ptr<void>& workspace, std::int64_t bytes) {
    for (int i = 0; i < 64; ++i)
      ASSERT_EQ(static_cast<unsigned char*>(workspace.get())[bytes + i], 0xff) << "the workspace is too small";
  }
};

/// A value and the sum of the absolute values of its terms.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term, double term_magnitude) { value += term, magnitude += term_magnitude; }
};

/// The formulas of attention.h, in the layouts of the kernel.
template <class T>
struct Reference {
  std::vector<Sum> out, lse, dq, dk, dv;
  double largest_score = 0;

  explicit Reference(const Problem<T>& p)
      : out(p.out.size()), lse(p.lse.size()), dq(p.q.size()), dk(p.k.size()), dv(p.v.size()) {
    const AttentionShape& s = p.shape;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.heads; ++h) {
        for (std::int64_t i = 0; i < s.q_length; ++i) query(p, b, h, i);
      }
    }
  }

  void query(const Problem<T>& p, std::int64_t b, std::int64_t h, std::int64_t i) {
    const AttentionShape& s = p.shape;
    const std::int64_t kv_head = (h + s.group_offset) / s.group_size;
    const std::int64_t q0 = (b * s.q_length + i) * s.q_stride + h * s.head_width;
    const std::int64_t o0 = (b * s.q_length + i) * s.out_stride + h * s.head_width;
    const auto key = [&](std::int64_t j) { return (b * s.kv_length + j) * s.k_stride + kv_head * s.head_width; };
    const auto dot = [&](const std::vector<T>& x, std::int64_t x0, const std::vector<T>& y, std::int64_t y0) {
      Sum sum;
      for (std::int64_t e = 0; e < s.head_width; ++e) {
        const double product = static_cast<double>(x[x0 + e]) * static_cast<double>(y[y0 + e]);
        sum.add(product, std::abs(product));
      }
      return sum;
    };
    std::vector<double> weight(static_cast<std::size_t>(s.kv_length)), derivative(weight.size());
    double maximum = -std::numeric_limits<double>::infinity(), total = 0;
    for (std::int64_t j = 0; j < s.kv_length; ++j) {
      if (!tests::sees(s, b, h, i, j)) continue;
      const Sum score = dot(p.q, q0, p.k, key(j));
      const tests::DefinedScore defined = tests::defined_score(s.score, s.scale * score.value, h, i, j);
      weight[j] = defined.value;
      derivative[j] = defined.derivative;
      maximum = std::max(maximum, weight[j]);
      largest_score = std::max(largest_score, s.scale * score.magnitude + defined.magnitude);
    }
    for (std::int64_t j = 0; j < s.kv_length; ++j) {
      weight[j] = tests::sees(s, b, h, i, j) ? std::exp(weight[j] - maximum) : 0;
      total += weight[j];
    }
    const double log_sum = maximum + std::log(total);
    lse[(b * s.heads + h) * s.q_length + i].add(log_sum, std::abs(log_sum) + 1);
    const Sum delta = dot(p.dout, o0, p.out, o0);  // of the kernel's own out, which backward reads
    for (std::int64_t j = 0; j < s.kv_length; ++j) {
      if (weight[j] == 0) continue;
      const double probability = weight[j] / total, kept = tests::drop_factor(s, b, h, i, j);
      const Sum dp = dot(p.dout, o0, p.v, key(j));
      const double ds = probability * (kept * dp.value - delta.value) * s.scale * derivative[j];
      // A derivative is 1 - t^2: both terms count.
      const double ds_magnitude = probability * (kept * dp.magnitude + delta.magnitude) * s.scale * (2 - derivative[j]);
      const auto add = [](Sum& sum, double factor, double factor_magnitude, T value) {
        sum.add(factor * static_cast<double>(value), factor_magnitude * std::abs(static_cast<double>(value)));
      };
      for (std::int64_t e = 0; e < s.head_width; ++e) {
        add(out[o0 + e], kept * probability, kept * probability, p.v[key(j) + e]);
        add(dq[q0 + e], ds, ds_magnitude, p.k[key(j) + e]);
        add(dk[key(j) + e], ds, ds_magnitude, p.q[q0 + e]);
        add(dv[key(j) + e], kept * probability, kept * probability, p.dout[o0 + e]);
      }
    }
  }
};

/// Expects every element of `values` within its error of `expected`; rows have `width` elements, and the elements
/// between them are untouched.
template <class T>
void expect_near(const char* name, const std::vector<T>& values, const std::vector<Sum>& expected, std::int64_t stride,
                 std::int64_t width, double relative, double rounding) {
  for (std::int64_t n = 0; n < static_cast<std::int64_t>(values.size()); ++n) {
    if (n % stride >= width) {
      ASSERT_EQ(static_cast<double>(values[n]), untouched) << name << " beyond row " << n / stride;
    } else if (std::isinf(expected[n].value)) {
      ASSERT_EQ(static_cast<double>(values[n]), expected[n].value) << name << " at " << n;
    } else {
      const double tolerance = relative * expected[n].magnitude + rounding * std::abs(expected[n].value);
      ASSERT_NEAR(static_cast<double>(values[n]), expected[n].value, tolerance) << name << " at " << n;
    }
  }
}

/// In `kernels` of bf16, probabilities and their gradients are rounded to bf16 before they are summed: at most u of the
/// magnitude. Tiles count denormal numbers as 0, which is less than 2^-126 of a factor: nothing beside terms of 2^-100
/// and more.
template <class T>
void expect_formula(const Case& c, const tests::AttentionKernels<T>* kernels = nullptr) {
  SCOPED_TRACE(c.name);
  Problem<T> p(c);
  if (kernels) p.use(*kernels);
  p.forward();
  p.backward();
  const Reference<T> r(p);
  const AttentionShape& s = p.shape;
  const double rounding = 2 * unit_roundoff<T>;
  const auto relative = [&](std::int64_t terms) {
    return 4 * unit_roundoff<Accumulate<T>> * std::sqrt(static_cast<double>(terms + s.head_width)) *
           (1 + r.largest_score);
  };
  const double of_operand = kernels && std::is_same_v<T, bf16> ? unit_roundoff<bf16> : 0;
  const std::int64_t q_width = s.heads * s.head_width, kv_width = s.kv_heads * s.head_width;
  expect_near("out", p.out, r.out, s.out_stride, q_width, relative(s.kv_length) + of_operand, rounding);
  expect_near("lse", p.lse, r.lse, 1, 1, relative(s.kv_length), 0);
  expect_near("dq", p.dq, r.dq, s.q_stride, q_width, relative(s.kv_length) + of_operand, rounding);
  expect_near("dk", p.dk, r.dk, s.k_stride, kv_width, relative(s.q_length * s.group_size) + of_operand, rounding);
  expect_near("dv", p.dv, r.dv, s.v_stride, kv_width, relative(s.q_length * s.group_size) + of_operand, rounding);
}

/// Runs `body` once on each instruction set of this processor.
template <class Body>
void on_each_instruction_set(const Body& body) {
  for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    const std::int64_t target = targets & -targets;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

template <class T>
struct AttentionTest : testing::Test {};
using Types = testing::Types<float, bf16, double>;
TYPED_TEST_SUITE(AttentionTest, Types);

TYPED_TEST(AttentionTest, EqualsTheFormula) {
  on_each_instruction_set([&] {
    for (const Case& c : cases) expect_formula<TypeParam>(c);
  });
}

// What no query sees, and what sees no key, has an error of exactly 0.
TYPED_TEST(AttentionTest, EqualsTheFormulaUnderEveryBand) {
  on_each_instruction_set([&] {
    for (const auto& [name, q_length, kv_length, band] : tests::band_cases) {
      expect_formula<TypeParam>({name, 1, q_length, kv_length, 2, 1, 12, 2, 0, band, 1});
      expect_formula<TypeParam>({name, 2, q_length, kv_length, 3, 2, 20, 2, 1, band, 3});
    }
  });
}

TYPED_TEST(AttentionTest, EqualsTheFormulaOfEveryScore) {
  on_each_instruction_set([&] {
    for (const auto& [name, score] : tests::score_cases) {
      expect_formula<TypeParam>({name, 2, 100, 130, 3, 2, 20, 2, 1, causal_band(100, 130), 3, score});
      expect_formula<TypeParam>({name, 1, 70, 70, 2, 2, 12, 1, 0, {-20, 40}, 1, score});
    }
  });
}

TYPED_TEST(AttentionTest, EqualsTheFormulaWithinDocuments) {
  on_each_instruction_set([&] {
    for (const auto& [name, q_length, kv_length, length, first_query, first_key, mean, band] : tests::document_cases) {
      const std::vector<DocumentRange> ranges = tests::random_documents(2, length, mean);
      const Documents documents{true, ranges.data(), length, first_query, first_key};
      expect_formula<TypeParam>({name, 2, q_length, kv_length, 3, 2, 20, 2, 1, band, 3, {}, documents});
      expect_formula<TypeParam>({name, 1, q_length, kv_length, 1, 1, 16, 1, 0, band, 1, {.soft_cap = 2}, documents});
    }
  });
}

TYPED_TEST(AttentionTest, EqualsTheFormulaIfHeadsHaveRangesOfTheirOwn) {
  on_each_instruction_set([&] {
    for (const auto& [name, slots, keys, window, rarity] : tests::head_ranges_cases) {
      const auto [ranges, documents] = tests::ranges_of_heads(2, 5, slots, keys, window, rarity);
      expect_formula<TypeParam>({name, 2, slots, keys, 5, 3, 20, 2, 1, full_band(), 3, {}, documents});
    }
  });
}

TYPED_TEST(AttentionTest, EqualsTheFormulaUnderDropout) {
  on_each_instruction_set([&] {
    for (const auto& [name, q_length, kv_length, dropout, band] : tests::dropout_cases) {
      expect_formula<TypeParam>({name, 2, q_length, kv_length, 3, 2, 20, 2, 1, band, 3, {}, {}, dropout});
      expect_formula<TypeParam>({name, 1, q_length, kv_length, 1, 1, 12, 1, 0, band, 1, {.soft_cap = 2}, {}, dropout});
    }
  });
}

TYPED_TEST(AttentionTest, GivesTheSameBitsTwice) {
  Problem<TypeParam> first({"", 2, 150, 150, 6, 2, 20, 3, 0, causal_band(150, 150), 4}), second = first;
  for (auto* p : {&first, &second}) {
    p->forward();
    p->backward();
  }
  const auto expect_equal = [](const auto& a, const auto& b) {
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])), 0);
  };
  expect_equal(first.out, second.out);
  expect_equal(first.lse, second.lse);
  expect_equal(first.dq, second.dq);
  expect_equal(first.dk, second.dk);
  expect_equal(first.dv, second.dv);
}

TYPED_TEST(AttentionTest, ForwardAndDqDoNotDependOnThreads) {
  Problem<TypeParam> one({"", 2, 150, 150, 3, 3, 16, 1, 0, causal_band(150, 150), 1}), many = one;
  many.device.threads = 7;
  for (auto* p : {&one, &many}) {
    p->forward();
    p->backward();
  }
  EXPECT_EQ(std::memcmp(one.out.data(), many.out.data(), one.out.size() * sizeof(TypeParam)), 0);
  EXPECT_EQ(std::memcmp(one.dq.data(), many.dq.data(), one.dq.size() * sizeof(TypeParam)), 0);
}

TYPED_TEST(AttentionTest, LaterTokensChangeNoBitOfEarlierOnes) {
  Problem<TypeParam> p({"", 1, 100, 100, 1, 1, 16, 1, 0, causal_band(100, 100), 1});
  p.forward();
  const auto before = p.out;
  const std::int64_t kept = 61;
  for (auto* values : {&p.k, &p.v}) {
    for (std::size_t n = kept * p.shape.k_stride; n < values->size(); ++n) (*values)[n] = TypeParam(1e4f);
  }
  p.forward();
  EXPECT_EQ(std::memcmp(before.data(), p.out.data(), kept * p.shape.out_stride * sizeof(TypeParam)), 0);
  EXPECT_NE(std::memcmp(before.data(), p.out.data(), p.out.size() * sizeof(TypeParam)), 0);
}

TYPED_TEST(AttentionTest, QueriesWithoutKeysGiveZeroAndContributeNoGradient) {
  Problem<TypeParam> p({"", 1, 90, 30, 1, 1, 8, 1, 0, causal_band(90, 30), 2});
  p.forward();
  p.backward();
  for (std::int64_t i = 0; i < 60; ++i) {
    EXPECT_EQ(p.lse[i], -std::numeric_limits<Accumulate<TypeParam>>::infinity());
    for (std::int64_t e = 0; e < 8; ++e) {
      EXPECT_EQ(p.out[i * p.shape.out_stride + e], 0);
      EXPECT_EQ(p.dq[i * p.shape.q_stride + e], 0);
    }
  }
}

TYPED_TEST(AttentionTest, NotANumberIsNotHidden) {
  for (const Score& score : {Score{}, Score{.soft_cap = 5, .alibi_heads = 1}}) {
    Problem<TypeParam> p({"", 1, 60, 60, 1, 1, 8, 1, 0, causal_band(60, 60), 1, score});
    p.k[20 * p.shape.k_stride] = TypeParam(std::numeric_limits<float>::quiet_NaN());
    p.forward();
    EXPECT_TRUE(std::isnan(static_cast<double>(p.out[30 * p.shape.out_stride])));
    EXPECT_FALSE(std::isnan(static_cast<double>(p.out[5 * p.shape.out_stride])));
  }
}

TYPED_TEST(AttentionTest, LargeScoresDoNotOverflow) {
  Problem<TypeParam> p({"", 1, 50, 50, 1, 1, 8, 1, 0, causal_band(50, 50), 1});
  for (auto* values : {&p.q, &p.k}) {
    for (TypeParam& value : *values) value = TypeParam(static_cast<Accumulate<TypeParam>>(value) * 100);
  }
  p.forward();
  p.backward();
  for (std::int64_t i = 0; i < 50; ++i) {
    for (std::int64_t e = 0; e < 8; ++e) {
      EXPECT_LT(std::abs(static_cast<double>(p.out[i * p.shape.out_stride + e])), 5);
      EXPECT_TRUE(std::isfinite(static_cast<double>(p.dq[i * p.shape.q_stride + e])));
    }
  }
}

// ---- The kernels on packed panels

template <class T>
struct AttentionOnPanels : testing::Test {};
using Operands = testing::Types<bf16, float>;
TYPED_TEST_SUITE(AttentionOnPanels, Operands);

TYPED_TEST(AttentionOnPanels, EqualsTheFormula) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    for (const Case& c : cases) expect_formula<TypeParam>(c, &kernels);
    for (const std::int64_t width : {16, 32, 33, 80, 96, 128, 256})
      expect_formula<TypeParam>({"a width", 1, 70, 70, 2, 1, width, 2, 0, causal_band(70, 70), 2}, &kernels);
    expect_formula<TypeParam>({"several spans of keys", 1, 600, 600, 2, 1, 24, 2, 0, causal_band(600, 600), 1},
                              &kernels);
    expect_formula<TypeParam>({"several spans, window", 1, 600, 700, 1, 1, 64, 1, 0, causal_band(600, 700, 300), 1},
                              &kernels);
    expect_formula<TypeParam>({"several spans, no mask", 1, 40, 530, 1, 1, 32, 1, 0, full_band(), 1}, &kernels);
  });
}

TYPED_TEST(AttentionOnPanels, EqualsTheFormulaUnderEveryBand) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    for (const auto& [name, q_length, kv_length, band] : tests::band_cases) {
      expect_formula<TypeParam>({name, 1, q_length, kv_length, 2, 1, 12, 2, 0, band, 1}, &kernels);
      expect_formula<TypeParam>({name, 2, q_length, kv_length, 3, 2, 20, 2, 1, band, 3}, &kernels);
    }
  });
}

TYPED_TEST(AttentionOnPanels, EqualsTheFormulaOfEveryScore) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    for (const auto& [name, score] : tests::score_cases) {
      expect_formula<TypeParam>({name, 2, 100, 130, 3, 2, 20, 2, 1, causal_band(100, 130), 3, score}, &kernels);
      expect_formula<TypeParam>({name, 1, 70, 70, 2, 2, 12, 1, 0, {-20, 40}, 1, score}, &kernels);
    }
  });
}

TYPED_TEST(AttentionOnPanels, EqualsTheFormulaWithinDocuments) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    for (const auto& [name, q_length, kv_length, length, first_query, first_key, mean, band] : tests::document_cases) {
      const std::vector<DocumentRange> ranges = tests::random_documents(2, length, mean);
      const Documents documents{true, ranges.data(), length, first_query, first_key};
      expect_formula<TypeParam>({name, 2, q_length, kv_length, 3, 2, 20, 2, 1, band, 3, {}, documents}, &kernels);
      expect_formula<TypeParam>({name, 1, q_length, kv_length, 1, 1, 16, 1, 0, band, 1, {.soft_cap = 2}, documents},
                                &kernels);
    }
  });
}

TYPED_TEST(AttentionOnPanels, EqualsTheFormulaIfHeadsHaveRangesOfTheirOwn) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    for (const auto& [name, slots, keys, window, rarity] : tests::head_ranges_cases) {
      const auto [ranges, documents] = tests::ranges_of_heads(2, 5, slots, keys, window, rarity);
      expect_formula<TypeParam>({name, 2, slots, keys, 5, 3, 20, 2, 1, full_band(), 3, {}, documents}, &kernels);
    }
  });
}

TYPED_TEST(AttentionOnPanels, BitsDoNotDependOnThreads) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    Problem<TypeParam> one({"", 2, 150, 150, 6, 3, 20, 2, 0, causal_band(150, 150), 1}), many = one;
    many.device.threads = 5;
    for (auto* p : {&one, &many}) {
      p->use(kernels);
      p->forward();
      p->backward();
    }
    const auto expect_equal = [](const auto& a, const auto& b) {
      EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])), 0);
    };
    expect_equal(one.out, many.out);
    expect_equal(one.lse, many.lse);
    expect_equal(one.dq, many.dq);
    expect_equal(one.dk, many.dk);
    expect_equal(one.dv, many.dv);
  });
}

TYPED_TEST(AttentionOnPanels, LaterTokensChangeNoBitOfEarlierOnes) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    Problem<TypeParam> p({"", 1, 100, 100, 1, 1, 16, 1, 0, causal_band(100, 100), 1});
    p.use(kernels);
    p.forward();
    const auto before = p.out;
    const std::int64_t kept = 61;
    for (auto* values : {&p.k, &p.v}) {
      for (std::size_t n = kept * p.shape.k_stride; n < values->size(); ++n) (*values)[n] = TypeParam(1e4f);
    }
    p.forward();
    EXPECT_EQ(std::memcmp(before.data(), p.out.data(), kept * p.shape.out_stride * sizeof(TypeParam)), 0);
    EXPECT_NE(std::memcmp(before.data(), p.out.data(), p.out.size() * sizeof(TypeParam)), 0);
  });
}

TYPED_TEST(AttentionOnPanels, NotANumberIsNotHiddenAndLargeScoresDoNotOverflow) {
  tests::on_every_attention_unit<TypeParam>([](const tests::AttentionKernels<TypeParam>& kernels) {
    Problem<TypeParam> p({"", 1, 60, 60, 1, 1, 8, 1, 0, causal_band(60, 60), 1});
    p.use(kernels);
    const Problem<TypeParam> before = p;
    p.k[20 * p.shape.k_stride] = TypeParam(std::numeric_limits<float>::quiet_NaN());
    p.forward();
    EXPECT_TRUE(std::isnan(static_cast<float>(p.out[30 * p.shape.out_stride])));
    EXPECT_FALSE(std::isnan(static_cast<float>(p.out[5 * p.shape.out_stride])));
    p = before;
    for (auto* values : {&p.q, &p.k}) {
      for (TypeParam& value : *values) value = TypeParam(static_cast<float>(value) * 100);
    }
    p.forward();
    p.backward();
    for (std::int64_t i = 0; i < 60; ++i) {
      for (std::int64_t e = 0; e < 8; ++e) {
        EXPECT_LT(std::abs(static_cast<float>(p.out[i * p.shape.out_stride + e])), 5);
        EXPECT_TRUE(std::isfinite(static_cast<float>(p.dq[i * p.shape.q_stride + e])));
      }
    }
  });
}

// One query q = 1, keys 0 and -x, values 0 and 1: out = 1 / (1 + exp(x)). The score has two roundings, so the error of
// its exponential is 2 u x; the power of two (1.5 u), the sum, its inverse and their product add less than 6 u.
void expect_accurate_probabilities(const tests::AttentionKernels<float>* kernels) {
  Problem<float> p({"", 860, 1, 2, 1, 1, 1, 1, 0, full_band(), 1});
  if (kernels) p.use(*kernels);
  for (std::int64_t b = 0; b < 860; ++b) {
    p.q[b * p.shape.q_stride] = 1;
    for (std::int64_t j = 0; j < 2; ++j) {
      p.k[(2 * b + j) * p.shape.k_stride] = static_cast<float>(-j * b) / 10;
      p.v[(2 * b + j) * p.shape.v_stride] = static_cast<float>(j);
    }
  }
  p.forward();
  for (std::int64_t b = 0; b < 860; ++b) {
    const double x = -static_cast<double>(p.k[(2 * b + 1) * p.shape.k_stride]), expected = 1 / (1 + std::exp(x));
    EXPECT_NEAR(p.out[b * p.shape.out_stride], expected, (2 * x + 6) * 0x1p-24 * expected) << "x = " << x;
  }
}
TEST(Attention, ProbabilitiesAreAccurateDownToTheSmallest) {
  on_each_instruction_set([] { expect_accurate_probabilities(nullptr); });
  tests::on_every_attention_unit<float>(
      [](const tests::AttentionKernels<float>& kernels) { expect_accurate_probabilities(&kernels); });
}

// Five-point differences: with step h the error of the formula is of order h^4, that of rounding is u |loss terms| / h.
TEST(Attention, GradientEqualsFiniteDifferences) {
  constexpr double h = 1e-3;
  for (const Case& c :
       {Case{"causal", 1, 7, 7, 2, 2, 5, 1, 0, causal_band(7, 7), 1},
        Case{"groups, window", 1, 9, 11, 4, 2, 3, 3, 1, causal_band(9, 11, 4), 1},
        Case{"no mask", 2, 4, 6, 1, 1, 4, 1, 0, full_band(), 1},
        Case{"first queries see nothing", 1, 8, 3, 2, 1, 3, 2, 0, causal_band(8, 3), 1},
        Case{"right of the diagonal", 1, 6, 9, 2, 1, 3, 2, 0, {2, 4}, 1},
        Case{"earlier keys only", 1, 7, 7, 1, 1, 4, 1, 0, {-unlimited, -1}, 2},
        Case{"soft cap", 1, 7, 7, 2, 1, 4, 2, 0, causal_band(7, 7), 1, {.soft_cap = 2}},
        Case{"dropout", 2, 7, 7, 2, 1, 4, 2, 0, causal_band(7, 7), 1, {}, {}, {0.3, 15, &tests::dropout_step, 2, 7}},
        Case{"soft cap and ALiBi",
             1,
             6,
             9,
             3,
             3,
             3,
             1,
             0,
             full_band(),
             2,
             {.soft_cap = 3, .alibi_heads = 3, .diagonal = 3}}}) {
    SCOPED_TRACE(c.name);
    Problem<double> p(c);
    p.forward();
    p.backward();
    const auto loss = [&] {
      p.forward();
      double sum = 0;
      for (std::size_t n = 0; n < p.out.size(); ++n) {
        if (static_cast<std::int64_t>(n) % p.shape.out_stride < c.heads * c.width) sum += p.out[n] * p.dout[n];
      }
      return sum;
    };
    const auto expect_slope = [&](std::vector<double>& input, const std::vector<double>& gradient) {
      for (std::size_t n = 0; n < input.size(); ++n) {
        if (gradient[n] == untouched) continue;  // between the rows
        const double value = input[n];
        const auto at = [&](double step) {
          input[n] = value + step * h;
          return loss();
        };
        const double slope = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h);
        input[n] = value;
        EXPECT_NEAR(gradient[n], slope, 100 * h * h * h * h) << "at " << n;
      }
    };
    expect_slope(p.q, p.dq);
    expect_slope(p.k, p.dk);
    expect_slope(p.v, p.dv);
  }
}

TEST(Attention, FlopsCountThePairsThatTheMaskAllows) {
  const auto expect_count = [](const Case& c) {
    const AttentionShape s = Problem<float>(c).shape;
    double pairs = 0;
    for (std::int64_t i = 0; i < s.q_length; ++i) {
      for (std::int64_t j = 0; j < s.kv_length; ++j) pairs += tests::sees(s, 0, 0, i, j);
    }
    EXPECT_EQ(attention_flops(s), 4.0 * static_cast<double>(c.batch * c.heads * c.width) * pairs) << c.name;
  };
  for (const Case& c : cases) expect_count(c);
  for (const auto& [name, q_length, kv_length, band] : tests::band_cases)
    expect_count({name, 2, q_length, kv_length, 3, 1, 5, 3, 0, band, 1});
}

TEST(Attention, WorkspaceGrowsLinearlyWithTheSequenceAndTheThreads) {
  const auto bytes = [](std::int64_t length, std::int64_t batch, int threads) {
    AttentionShape s = Problem<float>({"", 1, 1, 1, 4, 4, 64, 1, 0, causal_band(1, 1), 1}).shape;
    s.batch = batch;
    s.q_length = s.kv_length = length;
    return attention_backward_workspace_bytes<float>(Cpu{.threads = threads}, s);
  };
  EXPECT_EQ(bytes(9600, 1, 1) - bytes(4800, 1, 1), 2 * (bytes(4800, 1, 1) - bytes(2400, 1, 1)));
  EXPECT_EQ(bytes(4800, 1, 3), 3 * bytes(4800, 1, 1));
  EXPECT_EQ(bytes(4800, 8, 1), bytes(4800, 1, 1));
}

TEST(Attention, HeadsBeyondTheKeyValueHeadsAreAnError) {
  Problem<float> p({"", 1, 4, 4, 4, 2, 8, 2, 1, causal_band(4, 4), 1});
  try {
    p.forward();
    FAIL() << "query head 3 reads key/value head 2 of 2";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(),
                 "attention: query head 3 reads key/value head 2, but there are 2 (group_size 2, group_offset 1)");
  }
  EXPECT_THROW(p.backward(), std::runtime_error);
}

}  // namespace
}  // namespace choir::kernels
