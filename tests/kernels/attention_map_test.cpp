// Maps of heads: the probabilities of their definition in double precision; with the sinks, rows sum to 1 by the
// log-sum-exp that the kernels of attention save, and map times V is what these give.
//
// The error of a score is u sqrt(width) times the magnitude of its terms, on both sides, and is the relative error of a
// probability; an output adds n of these.
#include "kernels/attention_map.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/attention_sink.h"
#include "tests/kernels/attention_case.h"

namespace choir::kernels::tests {
namespace {

struct Case {
  const char* name;
  Band band;
  Score score{};
  std::uint32_t mean_document = 0;  // 0: joined
  bool sinks = false;
};

constexpr std::int64_t length = 130, heads = 5, kv_heads = 2, group = 3, width = 20;

const Case cases[] = {
    {"causal", causal_band(length, length)},
    {"no mask", full_band()},
    {"a window", causal_band(length, length, 9)},
    {"a window on both sides", window_band(12)},
    {"a prefix", with_prefix(causal_band(length, length), 40)},
    {"a prefix and a window", with_prefix(causal_band(length, length, 9), 40)},
    {"separate documents", causal_band(length, length), {}, 20},
    {"separate documents on both sides", full_band(), {}, 20},
    {"soft cap and ALiBi", full_band(), {.soft_cap = 3, .alibi_heads = 7, .first_head = 2}},
    {"sinks and a window", causal_band(length, length, 9), {}, 0, true},
    {"everything", with_prefix(causal_band(length, length), 40), {.soft_cap = 2, .alibi_heads = 5}, 30, true},
};

TEST(AttentionMap, IsItsDefinitionAndGivesWhatTheKernelsGive) {
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto draw = [&](std::int64_t count) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& value : values) value = normal(random);
      return values;
    };
    AttentionShape shape = shape_of({c.name, 1, length, length, heads, kv_heads, width, group, 0, c.band}, 0, 0, 0);
    shape.k_stride = shape.v_stride = kv_heads * width;
    const std::vector<DocumentRange> documents =
        c.mean_document > 0 ? random_documents(1, length, c.mean_document) : std::vector<DocumentRange>{};
    shape.score = c.score;
    shape.documents = {.separate = !documents.empty(), .ranges = documents.data(), .length = length};
    const std::vector<float> q = draw(length * heads * width), k = draw(length * kv_heads * width),
                             v = draw(length * kv_heads * width), sinks = draw(heads);
    std::vector<float> out(q.size()), lse(static_cast<std::size_t>(heads * length));
    const Cpu cpu{};
    std::vector<char> workspace(static_cast<std::size_t>(attention_forward_workspace_bytes<float>(cpu, shape)) + 64);
    void* aligned = workspace.data() + (64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64);
    attention_forward(cpu, AttentionForward<float>{.shape = shape,
                                                   .q = q.data(),
                                                   .k = k.data(),
                                                   .v = v.data(),
                                                   .out = out.data(),
                                                   .lse = lse.data(),
                                                   .workspace = aligned});
    if (c.sinks)
      attention_sink(cpu, AttentionSink<float>{1, length, heads, width, sinks.data(), out.data(), lse.data()});

    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t kv = h / group;
      std::vector<float> k_transposed(static_cast<std::size_t>(width * length));
      for (std::int64_t j = 0; j < length; ++j)
        for (std::int64_t e = 0; e < width; ++e)
          k_transposed[static_cast<std::size_t>(e * length + j)] =
              k[static_cast<std::size_t>((j * kv_heads + kv) * width + e)];
      const AttentionHead head{.length = length,
                               .kv_length = length,
                               .head_width = width,
                               .band = c.band,
                               .score = c.score,
                               .head = h,
                               .scale = shape.scale,
                               .documents = shape.documents,
                               .q = q.data() + h * width,
                               .q_stride = heads * width,
                               .k_transposed = k_transposed.data(),
                               .lse = lse.data() + h * length,
                               .sink = c.sinks ? sinks.data() + h : nullptr};
      for (std::int64_t i = 0; i < length; ++i) {
        std::vector<double> scores(static_cast<std::size_t>(length), -INFINITY);
        double total = c.sinks ? std::exp(double(sinks[static_cast<std::size_t>(h)])) : 0, magnitude = 1;
        for (std::int64_t j = 0; j < length; ++j) {
          if (!sees(shape, 0, 0, i, j)) continue;
          double product = 0, terms = 0;
          for (std::int64_t e = 0; e < width; ++e) {
            const double term = double(q[static_cast<std::size_t>((i * heads + h) * width + e)]) *
                                double(k[static_cast<std::size_t>((j * kv_heads + kv) * width + e)]) * shape.scale;
            product += term, terms += std::abs(term);
          }
          const DefinedScore score = defined_score(c.score, product, h, i, j);
          scores[static_cast<std::size_t>(j)] = score.value;
          magnitude = std::max(magnitude, terms + score.magnitude);
          total += std::exp(score.value);
        }
        const double tolerance = 8 * 0x1p-24 * std::sqrt(double(width + length)) * (1 + magnitude);
        std::vector<float> p(static_cast<std::size_t>(length));
        const float sink = attention_row(head, i, p.data()).sink;
        double sum = double(sink), largest = 0;
        std::vector<double> result(static_cast<std::size_t>(width));
        for (std::int64_t j = 0; j < length; ++j) {
          const double share = double(p[static_cast<std::size_t>(j)]);
          ASSERT_NEAR(share, std::exp(scores[static_cast<std::size_t>(j)]) / total, tolerance)
              << h << " " << i << " " << j;
          sum += share;
          for (std::int64_t e = 0; e < width; ++e) {
            const double value = double(v[static_cast<std::size_t>((j * kv_heads + kv) * width + e)]);
            result[static_cast<std::size_t>(e)] += share * value;
            largest = std::max(largest, std::abs(value));
          }
        }
        ASSERT_NEAR(sum, 1, tolerance) << h << " " << i;
        for (std::int64_t e = 0; e < width; ++e)
          ASSERT_NEAR(double(out[static_cast<std::size_t>((i * heads + h) * width + e)]),
                      result[static_cast<std::size_t>(e)], tolerance * largest)
              << h << " " << i << " " << e;
      }
    }
  }
}

// Every error is one of f32 in a product of `width` terms.
TEST(AttentionMap, OfLinearAttentionHasTheSharesOfItsWeights) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<std::size_t>(length * width)), k_transposed(q.size()), p(length);
  for (std::vector<float>* values : {&q, &k_transposed})
    for (float& value : *values) value = normal(random);
  std::vector<double> sums(length);
  for (std::size_t i = 1; i < length; ++i) sums[i] = sums[i - 1] - 0.1 * static_cast<double>(std::abs(normal(random)));
  for (const Band& band : {causal_band(length, length), full_band()}) {
    const AttentionHead head{.length = length,
                             .kv_length = length,
                             .head_width = width,
                             .band = band,
                             .scale = 0.25,
                             .q = q.data(),
                             .q_stride = width,
                             .k_transposed = k_transposed.data(),
                             .decay_sums = sums.data()};
    for (std::int64_t i = 0; i < length; i += 43) {
      ASSERT_TRUE(is_computed(head, i));
      std::vector<double> weights;
      double sum = 0;
      for (std::int64_t j = 0; j < seen_keys(head, i).end; ++j) {
        double score = 0;
        for (std::int64_t e = 0; e < width; ++e)
          score += static_cast<double>(q[static_cast<std::size_t>(i * width + e)]) *
                   static_cast<double>(k_transposed[static_cast<std::size_t>(e * length + j)]);
        const auto at = [&](std::int64_t t) { return sums[static_cast<std::size_t>(t)]; };
        weights.push_back(0.25 * std::abs(score) * std::exp(-std::abs(at(i) - at(j))));
        sum += weights.back();
      }
      const RowSums row = attention_row(head, i, p.data());
      EXPECT_EQ(row.sink, 0);
      EXPECT_NEAR(row.log_sum, std::log(sum), 1e-5);
      for (std::size_t j = 0; j < weights.size(); ++j) ASSERT_NEAR(p[j], weights[j] / sum, 1e-6) << i << " " << j;
    }
  }
}

// The weights times v, of one feature, are what the recurrence of the delta rule reads, in f64. Errors are those of f32
// in products of `width` terms and through up to `length` tokens, each of which lengthens nothing.
TEST(AttentionMap, OfTheDeltaRuleTimesValuesIsItsRecurrence) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  constexpr std::int64_t border = 50;  // a document begins
  std::vector<float> q(static_cast<std::size_t>(length * width)), k(q.size()), rates(length), w(length), p(length);
  std::vector<double> decays(length), sums(length), v(length);
  const auto row = [](const std::vector<float>& of, std::int64_t t) { return of.data() + t * width; };
  for (std::vector<float>* of : {&q, &k})
    for (std::int64_t t = 0; t < length; ++t) {
      double square = 0;
      for (std::int64_t e = t * width; e < (t + 1) * width; ++e) {
        float& x = (*of)[static_cast<std::size_t>(e)] = normal(random);
        square += static_cast<double>(x * x);
      }
      for (std::int64_t e = t * width; e < (t + 1) * width; ++e)
        (*of)[static_cast<std::size_t>(e)] /= static_cast<float>(std::sqrt(square));
    }
  std::vector<DocumentRange> documents(length);
  for (std::int64_t t = 0; t < length; ++t) {
    const auto at = static_cast<std::size_t>(t);
    documents[at] = t < border ? DocumentRange{0, border} : DocumentRange{border, length};
    const double g = -0.1 * static_cast<double>(std::abs(normal(random)));
    decays[at] = t == border ? 0 : std::exp(g);
    sums[at] = (t > 0 ? sums[at - 1] : 0) + (t == border ? 0 : g);
    rates[at] = std::exp(-std::abs(normal(random)));
    v[at] = static_cast<double>(normal(random));
  }
  for (const Band& band : {causal_band(length, length), full_band()}) {
    std::vector<double> out(length), state(width);
    const auto change = [&](std::int64_t t, double before, double after) {
      const auto at = static_cast<std::size_t>(t);
      double stood = 0;
      for (std::int64_t e = 0; e < width; ++e)
        stood += static_cast<double>(row(k, t)[e]) * before * state[static_cast<std::size_t>(e)];
      const double value = static_cast<double>(rates[at]) * (v[at] - stood);
      for (std::int64_t e = 0; e < width; ++e) {
        double& s = state[static_cast<std::size_t>(e)];
        s = after * (before * s + static_cast<double>(row(k, t)[e]) * value);
      }
    };
    const auto read = [&](std::int64_t t) {
      for (std::int64_t e = 0; e < width; ++e)
        out[static_cast<std::size_t>(t)] +=
            0.5 * static_cast<double>(row(q, t)[e]) * state[static_cast<std::size_t>(e)];
    };
    for (std::int64_t t = 0; t < length; ++t) {
      change(t, decays[static_cast<std::size_t>(t)], 1);
      read(t);
    }
    std::fill(state.begin(), state.end(), 0.0);
    for (std::int64_t t = length - 1; t >= 0 && band.last > 0; --t) {
      read(t);
      change(t, 1, decays[static_cast<std::size_t>(t)]);
    }

    const AttentionHead head{.length = length,
                             .kv_length = length,
                             .head_width = width,
                             .band = band,
                             .scale = 0.5,
                             .documents = {.separate = true, .ranges = documents.data(), .length = length},
                             .q = q.data(),
                             .q_stride = width,
                             .decay_sums = sums.data(),
                             .k = k.data(),
                             .rates = rates.data()};
    for (std::int64_t i = 0; i < length; ++i) {
      linear_weights(head, i, w.data());
      const RowSums row_sums = attention_row(head, i, p.data());
      double sum = 0, size = 0;
      const auto keys = seen_keys(head, i);
      for (std::int64_t j = keys.begin; j < keys.end; ++j) {
        const auto at = static_cast<std::size_t>(j);
        sum += static_cast<double>(w[at]) * v[at];
        size += std::abs(static_cast<double>(w[at]));
      }
      ASSERT_NEAR(sum, out[static_cast<std::size_t>(i)], 1e-5) << i;
      EXPECT_NEAR(row_sums.log_sum, std::log(size), 1e-5);
      for (std::int64_t j = keys.begin; j < keys.end; ++j)
        ASSERT_NEAR(p[static_cast<std::size_t>(j)], std::abs(w[static_cast<std::size_t>(j)]) / size, 1e-6);
    }
  }
}

}  // namespace
}  // namespace choir::kernels::tests
