// The plan counts what repeats once: its totals and peaks are those of a step that runs every micro-batch.
#include "framework/train/plan.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace choir::tests
