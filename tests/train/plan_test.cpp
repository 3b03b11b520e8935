// The plan counts what repeats once: its totals and peaks are those of a step that runs every micro-batch.
#include "framework/train/plan.h"

#include <gtest/gtest.h>

#include <map>

#include "framework/train/trainer.h"

namespace choir::tests {
namespace {

void expect_equal(const RankPlan& planned, const RankPlan& full) {
  EXPECT_EQ(planned.at, full.at);
  EXPECT_EQ(planned.owned_parameters, full.owned_parameters);
  EXPECT_EQ(planned.held_parameters, full.held_parameters);
  EXPECT_EQ(planned.peak.bytes, full.peak.bytes);
  EXPECT_EQ(planned.flops, full.flops);
  ASSERT_EQ(planned.operations.size(), full.operations.size());
  for (std::size_t i = 0; i < full.operations.size(); ++i) {
    EXPECT_EQ(planned.operations[i].name, full.operations[i].name);
    EXPECT_EQ(planned.operations[i].calls, full.operations[i].calls) << full.operations[i].name;
    EXPECT_EQ(planned.operations[i].cost.flops, full.operations[i].cost.flops) << full.operations[i].name;
    EXPECT_EQ(planned.operations[i].cost.bytes, full.operations[i].cost.bytes) << full.operations[i].name;
  }
  ASSERT_EQ(planned.traffic.size(), full.traffic.size());
  for (std::size_t i = 0; i < full.traffic.size(); ++i) {
    EXPECT_EQ(planned.traffic[i].axis, full.traffic[i].axis);
    EXPECT_EQ(planned.traffic[i].verb, full.traffic[i].verb);
    EXPECT_EQ(planned.traffic[i].messages, full.traffic[i].messages) << full.traffic[i].axis << full.traffic[i].verb;
    EXPECT_EQ(planned.traffic[i].bytes, full.traffic[i].bytes) << full.traffic[i].axis << full.traffic[i].verb;
  }
}

/// Every tensor rank of the plan against all micro-batches of this rank.
void expect_full_count(const Config& config, int ranks, DeviceKind kind) {
  throw_if_any(validate(config, ranks));
  const CountOnly device{.kind = kind, .gpu = nullptr};
  const Plan plan = make_plan(config, ranks, device, 2);
  ASSERT_EQ(std::ssize(plan.ranks), plan.shape.tensor * plan.shape.context * plan.shape.pipeline);
  for (const RankPlan& planned : plan.ranks) {
    SCOPED_TRACE("tensor rank " + std::to_string(planned.at.tensor) + ", stage " + std::to_string(planned.at.pipeline));
    expect_equal(planned, count_step(config, plan.shape, plan.shape.rank(planned.at), device, 2));
  }
}

Config small_config(const std::vector<std::string>& words) {
  std::vector<std::string> all = {
      "model={layers: 2, width: 40, vocabulary: 100, context: 9, attention: {heads: 5}, feed_forward: {width: 72}}",
      "train.emulate_bf16=true"};
  all.insert(all.end(), words.begin(), words.end());
  return read_config("", all);
}

// Pipelines have two more micro-batches than fill them, and all that a schedule may do at its ends.
const std::vector<std::string> pipelines[] = {
    {"parallel.pipeline=2"},
    {"parallel.pipeline=3", "parallel.schedule=zero_bubble"},
    {"parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.tensor=2"},
    {"parallel.pipeline=2", "parallel.schedule=v", "train.recompute=block"},
};

// Five heads, nine feed-forward units of eight, 100 tokens and 9 or 18 rows divide by none of these ranks.
struct Layout {
  int tensor, data;
  std::vector<std::string> words;
};
const Layout layouts[] = {
    {1, 1, {}},
    {1, 2, {"parallel.zero=1"}},
    {1, 2, {"parallel.zero=2"}},
    {1, 2, {"parallel.zero=3", "train.recompute=block"}},
    {2, 1, {"parallel.sequence=true"}},
    {3, 1, {"train.recompute=block"}},
    {4, 2, {"train.precision=bf16", "parallel.zero=1", "parallel.sequence=true"}},
    {3, 1, {"model.attention.heads=8", "model.attention.head_width=4", "model.attention.kv_heads=2"}},
    {5, 1, {"model.tied=false", "optimizer.kind=sgd", "model.attention.position=rotary"}}};

void expect_full_counts(DeviceKind kind) {
  for (const Layout& layout : layouts)
    for (int micro_batches = 1; micro_batches <= 8; ++micro_batches) {
      std::vector<std::string> words = layout.words;
      words.push_back("parallel.tensor=" + std::to_string(layout.tensor));
      words.push_back("parallel.micro_batch=2");
      words.push_back("train.batch=" + std::to_string(2 * micro_batches * layout.data));
      std::string trace;
      for (const std::string& word : words) trace += " " + word;
      SCOPED_TRACE(trace);
      expect_full_count(small_config(words), layout.tensor * layout.data, kind);
    }
}

TEST(Plan, EqualsTheStepThatRunsEveryMicroBatch) { expect_full_counts(DeviceKind::cpu); }

TEST(Plan, OnGpusEqualsTheStepThatRunsEveryMicroBatch) {
  if (!kernels::built_with_cuda) GTEST_SKIP() << "this build has no CUDA kernels to count";
  expect_full_counts(DeviceKind::cuda);
}

TEST(Plan, OfAPipelineEqualsTheStepThatRunsEveryMicroBatch) {
  for (const std::vector<std::string>& pipeline : pipelines)
    for (int micro_batches = 1; micro_batches <= 16; ++micro_batches) {
      std::vector<std::string> words = {"parallel.micro_batch=1", "train.batch=" + std::to_string(micro_batches)};
      words.insert(words.end(), pipeline.begin(), pipeline.end());
      const Config config = small_config(words);
      SCOPED_TRACE(pipeline[0] + " " + pipeline.back() + " " + std::to_string(micro_batches));
      expect_full_count(config, static_cast<int>(config.parallel.ranks_of_a_copy()), DeviceKind::cpu);
    }
}

TEST(Plan, OfAThousandMicroBatchesEqualsTheFullCount) {
  expect_full_count(small_config({"parallel.tensor=2", "parallel.micro_batch=1", "train.batch=1000"}), 2,
                    DeviceKind::cpu);
}

/// A step of a GPT of 36 layers on device `count`.
RankPlan count_of_stage(int zero, int ranks, int micro_batches, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words = {
      "model={layers: 36, width: 1280, vocabulary: 32000, context: 512, attention: {heads: 20}}",
      "train.precision=bf16",
      "train.emulate_bf16=true",
      "parallel.micro_batch=1",
      "train.batch=" + std::to_string(ranks * micro_batches),
      "parallel.zero=" + std::to_string(zero)};
  words.insert(words.end(), more.begin(), more.end());
  const Config config = read_config("", words);
  throw_if_any(validate(config, ranks));
  return count_step(config, mesh_shape(config, ranks), 0, {.kind = DeviceKind::cpu, .gpu = nullptr}, 2);
}

std::int64_t bytes_of(const RankPlan& plan, MemoryKind kind) { return plan.peak.bytes[static_cast<std::size_t>(kind)]; }

// 36 blocks and 512 rows in bf16. What is saved: x, normed, q, k, v, the result of attention, and in f32 a log-sum-exp
// for each of 20 heads; h, normed, and 4 widths before and after the activation. What is computed again: its
// operations.
TEST(Recompute, SavesWhatItComputesAgain) {
  struct Case {
    const char* kind;
    std::int64_t widths, sums;
    std::map<std::string, std::int64_t> again;  // calls in each block
  };
  const auto calls = [](const RankPlan& plan, const std::string& name) {
    for (const Ledger::Operation& operation : plan.operations)
      if (operation.name == name) return static_cast<std::int64_t>(operation.calls);
    return std::int64_t{0};
  };
  constexpr std::int64_t blocks = 36, rows = 512, width = 1280, heads = 20;
  const RankPlan all = count_of_stage(0, 1, 1);
  for (const Case& c :
       {Case{"norms", 2, 0, {{"norm forward", 2}}},
        Case{"attention", 4, 1, {{"attention qkv", 1}, {"attention forward", 1}}},
        Case{"feed_forward", 8, 0, {{"feed-forward up", 1}}},
        Case{"block", 15, 1, {{"attention qkv", 1}, {"feed-forward down", 1}, {"residual and norm forward", 1}}}}) {
    SCOPED_TRACE(c.kind);
    const RankPlan some = count_of_stage(0, 1, 1, {std::string("train.recompute=") + c.kind});
    const std::int64_t saved = rows * (c.widths * width * 2 + c.sums * heads * 4);
    EXPECT_NEAR(static_cast<double>(bytes_of(all, MemoryKind::saved) - bytes_of(some, MemoryKind::saved)),
                static_cast<double>(blocks * saved), 0.02 * static_cast<double>(blocks * saved));
    EXPECT_GT(some.flops, all.flops);
    for (const auto& [name, more] : c.again) EXPECT_EQ(calls(some, name) - calls(all, name), more * blocks) << name;
  }
}

// Of blocks 256 wide, in bf16, by what a layer saves besides its input.
TEST(Recompute, OfEveryLayerIsNotSaved) {
  constexpr std::int64_t blocks = 4, rows = 512, source = 256, heads = 4;
  constexpr std::int64_t row = 256 * 2, sum = heads * 4;  // bytes of a row of x, and of a f32 for each of its heads
  constexpr std::int64_t slots = 4 * 320;                 // 1.25 * 512 * 2 / 4 for each of four experts
  struct Case {
    const char *model, *kind;
    std::int64_t of_a_block;
  };
  const Case cases[] = {
      // The widths before and after the activation.
      {"model.experts={count: 4, chosen: 2, capacity: 1.25}", "feed_forward", slots * 2 * 4 * row},
      {"model.experts={count: 4, chosen: 2, capacity: 1.25, shared: 1}", "feed_forward", (slots + rows) * 2 * 4 * row},
      // q, k, v, what comes of them, its norm and statistics, and decays.
      {"model.attention.kind=linear", "attention", rows * (5 * row + 2 * sum)},
      // Of an encoder's block, of a decoder's, and the second attention of that: q and its result, k and v.
      {"model={family: encoder_decoder, source_context: 256}", "attention",
       (source + rows) * (4 * row + sum) + rows * (2 * row + sum) + source * 2 * row},
      {"model={family: encoder_decoder, source_context: 256}", "norms", source * 2 * row + rows * 3 * row},
      {"model={family: encoder_decoder, source_context: 256}", "feed_forward", (source + rows) * 2 * 4 * row},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.model + std::string(" ") + c.kind);
    const auto saved_with = [&](const char* kind) {
      const Config config = read_config(
          "", {"model={layers: 4, width: 256, vocabulary: 32000, context: 512, attention: {heads: 4}}", c.model,
               "train={precision: bf16, emulate_bf16: true, batch: 1}", std::string("train.recompute=") + kind});
      return bytes_of(count_step(config, mesh_shape(config, 1), 0, {}, 1), MemoryKind::saved);
    };
    const auto less = static_cast<double>(saved_with("none") - saved_with(c.kind));
    EXPECT_NEAR(less, static_cast<double>(blocks * c.of_a_block), 0.02 * less);
  }
}

// cuDNN's workspace, and what CUDA and NCCL keep, come on top.
TEST(Presets, Llama8BFitsEightGpusOf80GBAndExecutesNothingTwice) {
  if (!kernels::built_with_cuda) GTEST_SKIP() << "this build has no CUDA kernels to count";
  const Config config = read_config(CHOIR_SOURCE_DIR "/configs/llama3-8b.yaml", {"train.emulate_bf16=true"});
  const Plan plan = make_plan(config, 8, {.kind = DeviceKind::cuda}, 1);
  EXPECT_LT(static_cast<double>(plan.worst().peak.total()), 70e9);
  EXPECT_LT(8 * plan.worst().flops, 1.03 * plan.model_flops);
}

TEST(Zero, Stage3NeedsAQuarterOnFourRanksAndWhatIsSaved) {
  const RankPlan one = count_of_stage(0, 1, 1), four = count_of_stage(3, 4, 2);
  double whole = 0;
  for (const MemoryKind kind : {MemoryKind::parameters, MemoryKind::gradients, MemoryKind::optimizer})
    whole += static_cast<double>(bytes_of(one, kind));
  const double least = whole / 4 + static_cast<double>(bytes_of(four, MemoryKind::saved));
  RecordProperty("peak over the least", std::to_string(static_cast<double>(four.peak.total()) / least));
  EXPECT_LE(static_cast<double>(four.peak.total()), 1.25 * least);
}

// In bytes given to the verbs, of P parameters with their padding: gradients are f32, values bf16 but for vectors.
TEST(Zero, TrafficIsTheLeastOfItsStage) {
  constexpr int ranks = 4, micro_batches = 3;
  const auto traffic = [&](int zero, const std::string& verb) {
    double bytes = 0;
    for (const Ledger::Traffic& t : count_of_stage(zero, ranks, micro_batches, {"model.tied=false"}).traffic)
      if (t.axis == "data" && t.verb == verb) bytes += t.bytes;
    return bytes;
  };
  const double sums = 8;  // the loss; the number of targets is a message between hosts
  const double gradients = traffic(0, "all_reduce") - sums, values = traffic(1, "all_gather");
  EXPECT_EQ(traffic(0, "all_gather"), 0);
  EXPECT_EQ(traffic(0, "reduce_scatter"), 0);
  EXPECT_NEAR(values, gradients / 2, 0.01 * values);
  for (const int zero : {1, 2, 3}) EXPECT_EQ(traffic(zero, "all_reduce"), sums);
  EXPECT_EQ(traffic(1, "reduce_scatter"), gradients);
  EXPECT_EQ(traffic(2, "all_gather"), values);
  EXPECT_EQ(traffic(2, "reduce_scatter"), micro_batches * gradients);
  EXPECT_EQ(traffic(3, "reduce_scatter"), micro_batches * gradients);
  // Once for forward and once for backward, which does not read the embedding.
  EXPECT_LT(traffic(3, "all_gather"), 2 * micro_batches * values);
  EXPECT_GT(traffic(3, "all_gather"), 1.8 * micro_batches * values);
}

}  // namespace
}  // namespace choir::tests
