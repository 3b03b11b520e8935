// What context parallelism sends and needs, counted: no more bytes than its formulas, and a share of the memory.
#include <gtest/gtest.h>

#include "framework/parallel/context.h"
#include "framework/train/plan.h"
#include "framework/train/trainer.h"

namespace choir::tests {
namespace {

constexpr int ranks = 4;

Config config_of(const std::string& model, const std::vector<std::string>& words) {
  std::vector<std::string> all = {"model=" + model, "train.batch=2", "parallel.context=4"};
  all.insert(all.end(), words.begin(), words.end());
  return read_config("", all);
}

RankPlan count(const Config& config, int rank, int of = ranks) {
  throw_if_any(validate(config, of));
  return count_step(config, mesh_shape(config, of), rank, {.kind = DeviceKind::cpu, .gpu = nullptr}, 1);
}

/// Bytes on the context axis by verb. A collective's are those of its larger tensor.
double traffic(const RankPlan& plan, const std::string& verb) {
  double bytes = 0;
  for (const Ledger::Traffic& t : plan.traffic)
    if (t.axis == "context" && t.verb == verb) bytes += t.bytes;
  return bytes;
}

// Six query heads on four ranks, of which two share a key/value head with the next one.
const std::string grouped =
    "{layers: 3, width: 48, vocabulary: 100, context: 64, attention: {heads: 6, kv_heads: 2}, feed_forward: {width: "
    "72}}";

ContextBytes formula(const Config& config) {
  const ModelConfig& m = config.model;
  const AttentionSpec spec{
      .heads = {m.attention.heads, m.kv_heads(), 1}, .head_width = m.head_width(), .band = attention_band(m)};
  ContextBytes bytes = context_bytes(spec, m.context, ranks, DType::f32);
  for (double* each : {&bytes.ring, &bytes.heads, &bytes.gather})
    *each *= static_cast<double>(m.layers * config.train.batch);
  return bytes;
}

TEST(ContextTraffic, IsThatOfTheFormulas) {
  const Config ring = config_of(grouped, {"parallel.context_kind=ring"});
  const double keys_and_values = 2.0 * 64 * 2 * 2 * 8 * 4 * 3;  // B T, two of K heads E wide, in f32, in three layers
  EXPECT_EQ(formula(ring).ring, 3 * 3 / 4.0 * keys_and_values) << "(c - 1) / c of them, three times";
  double by_heads = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    EXPECT_EQ(traffic(count(ring, rank), "exchange"), formula(ring).ring);
    const Config gather = config_of(grouped, {"parallel.context_kind=gather"});
    const RankPlan gathered = count(gather, rank);
    EXPECT_EQ((traffic(gathered, "all_gather") + traffic(gathered, "reduce_scatter")) * 3 / 4, formula(gather).gather);
    const Config heads = config_of(grouped, {"parallel.context_kind=heads"});
    by_heads += traffic(count(heads, rank), "exchange") / ranks;
  }
  EXPECT_NEAR(by_heads, formula(ring).heads, 1e-9 * by_heads);
}

TEST(ContextTraffic, OfAWindowIsThatOfTheRanksInIt) {
  const Config near = config_of(grouped, {"parallel.context_kind=ring", "model.attention.window=4"});
  EXPECT_EQ(traffic(count(near, 1), "exchange"), formula(near).ring);
  const Config far = config_of(grouped, {"parallel.context_kind=ring"});
  EXPECT_EQ(formula(near).ring * 3, formula(far).ring * 2) << "two of three other ranks";
}

double bytes_of_activations(const RankPlan& plan) {
  double bytes = 0;
  for (const MemoryKind kind : {MemoryKind::saved, MemoryKind::workspace, MemoryKind::temporary})
    bytes += static_cast<double>(plan.peak.bytes[static_cast<std::size_t>(kind)]);
  return bytes;
}

/// Of `kind` on each of the ranks, over that of one rank alone.
void expect_a_quarter(const std::string& model, const std::vector<std::string>& kinds) {
  const auto config = [&](const std::string& word) { return config_of(model, {"train.batch=1", word}); };
  const double alone = bytes_of_activations(count(config("parallel.context=1"), 0, 1));
  for (const std::string& kind : kinds)
    for (int rank = 0; rank < ranks; ++rank) {
      const double share = bytes_of_activations(count(config("parallel.context_kind=" + kind), rank)) / alone;
      EXPECT_LE(share, 0.27) << kind << ", rank " << rank << " of " << model;
      EXPECT_GE(share, 0.25) << kind << ", rank " << rank << " of " << model;
    }
}

// What is more than a quarter: `gather` has the keys and values of all positions in one layer, so it is for few heads
// of them; `ring` has those of another rank and sums in f32; and the head works on as many rows at a time as on one
// rank.
TEST(ContextMemory, OfALongSequenceIsAShare) {
  expect_a_quarter(
      "{layers: 12, width: 1024, vocabulary: 32000, context: 131072, attention: {heads: 16, kv_heads: 4, position: "
      "rotary}}",
      {"ring", "heads", "gather"});
  expect_a_quarter("{layers: 12, width: 768, vocabulary: 50257, context: 131072, attention: {heads: 12}}",
                   {"ring", "heads", "auto"});
}

}  // namespace
}  // namespace choir::tests
