// Whether the real cuDNN accepts Choir's attention. Every attention of configs/ is planned for the GPUs that people
// train on, forward and backward, without a GPU: cuDNN chooses the engine, compiles the kernel and reports the size of
// the workspace. Nothing runs: numbers and speed are not tested.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "framework/config/config.h"
#include "framework/model/families.h"
#include "framework/parallel/head_partition.h"
#include "kernels/cuda/cudnn_attention.h"
#include "tests/cudnn/described_gpu.h"

namespace choir {
namespace {

using cudnn_test::describe_gpu;
using kernels::AttentionShape;
using kernels::causal_band;
using kernels::full_band;
using kernels::cuda::AttentionPass;
using kernels::cuda::CudnnAttention;
using kernels::cuda::CudnnAttentionPlan;

constexpr std::int64_t workspace_limit_bytes = kernels::cuda::CudnnAttentionOptions{}.workspace_limit_bytes;

// Self-attention in training: q, k and v side by side in the output of one product.
AttentionShape packed(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t kv_heads,
                      std::int64_t head_width) {
  const std::int64_t row = (heads + 2 * kv_heads) * head_width;
  return {.batch = batch,
          .q_length = length,
          .kv_length = length,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_width = head_width,
          .group_size = heads / kv_heads,
          .q_stride = row,
          .k_stride = row,
          .v_stride = row,
          .out_stride = heads * head_width,
          .band = causal_band(length, length),
          .scale = 1 / std::sqrt(static_cast<double>(head_width))};
}

struct NamedShape {
  std::string name;
  AttentionShape shape;
};

std::vector<std::string> configurations() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(CHOIR_SOURCE_DIR) + "/configs"))
    names.push_back(entry.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}

// One for each share of heads that a rank of the configuration can hold.
std::vector<NamedShape> shapes_of(const std::string& name) {
  const Config config = read_config(std::string(CHOIR_SOURCE_DIR) + "/configs/" + name + ".yaml");
  const ModelConfig& model = config.model;
  const std::int64_t batch = config.parallel.micro_batch > 0 ? config.parallel.micro_batch : config.train.batch;
  const HeadPartition partition{model.attention.heads, model.kv_heads(), config.parallel.tensor};
  std::vector<NamedShape> result;
  std::set<std::array<std::int64_t, 3>> seen;
  for (std::int64_t rank = 0; rank < partition.ranks; ++rank) {
    const std::int64_t heads = partition.query(rank).count(), kv_heads = partition.key_value(rank).count();
    if (!seen.insert({heads, kv_heads, partition.group_offset(rank)}).second) continue;
    AttentionShape shape = packed(batch, model.context, heads, kv_heads, model.head_width());
    shape.group_size = partition.group_size();
    shape.group_offset = partition.group_offset(rank);
    shape.band = attention_band(model);
    result.push_back({name, shape});
  }
  return result;
}

void print_row(const std::string& gpu, const NamedShape& named, const char* pass, const CudnnAttentionPlan& plan) {
  const AttentionShape& s = named.shape;
  std::printf("%-5s %-12s B%-3lld T%-5lld H%-3lld K%-3lld E%-4lld %-26s %2d call%s %12lld B  %s\n", gpu.c_str(),
              named.name.c_str(), static_cast<long long>(s.batch), static_cast<long long>(s.q_length),
              static_cast<long long>(s.heads), static_cast<long long>(s.kv_heads), static_cast<long long>(s.head_width),
              pass, plan.calls, plan.calls == 1 ? " " : "s", static_cast<long long>(plan.workspace_bytes),
              plan.refusal.empty() ? plan.engine.c_str() : plan.refusal.c_str());
  std::fflush(stdout);
}

CudnnAttention on(const std::string& gpu, bool deterministic = true) {
  return CudnnAttention({.deterministic = deterministic, .described_gpu = describe_gpu(gpu)});
}

// Why nothing can be planned in this build; empty if it can. A width of 1 is refused before anything is compiled.
std::string missing() {
  const std::string refusal = on("h100").plan(AttentionPass::forward, packed(1, 64, 1, 1, 1)).refusal;
  return refusal.starts_with("this build has no cuDNN") ? refusal : "";
}

class CudnnConfigurations : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(CudnnConfigurations, EveryAttentionIsAccepted) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  const auto& [gpu, configuration] = GetParam();
  CudnnAttention deterministic = on(gpu), free_order = on(gpu, false);
  for (const NamedShape& named : shapes_of(configuration)) {
    const struct {
      const char* name;
      const CudnnAttentionPlan& plan;
    } passes[] = {
        {"forward", deterministic.plan(AttentionPass::forward, named.shape)},
        {"backward, deterministic", deterministic.plan(AttentionPass::backward, named.shape)},
        {"backward", free_order.plan(AttentionPass::backward, named.shape)},
    };
    for (const auto& [pass, plan] : passes) {
      print_row(gpu, named, pass, plan);
      EXPECT_EQ(plan.refusal, "") << named.name << " " << pass;
      EXPECT_LE(plan.workspace_bytes, workspace_limit_bytes) << named.name << " " << pass;
    }
    if (gpu != "h100") continue;  // for whose backward there is a formula
    for (const bool is_deterministic : {true, false}) {
      const CudnnAttentionPlan& plan =
          (is_deterministic ? deterministic : free_order).plan(AttentionPass::backward, named.shape);
      const auto memory = kernels::cuda::cudnn_backward_memory(named.shape, is_deterministic);
      ASSERT_TRUE(memory) << named.name;
      EXPECT_EQ(memory->workspace_bytes, plan.workspace_bytes) << named.name << ", " << is_deterministic;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gpus, CudnnConfigurations,
                         testing::Combine(testing::Values("a100", "h100", "b200"), testing::ValuesIn(configurations())),
                         [](const auto& test) {
                           std::string name = std::get<0>(test.param) + "_" + std::get<1>(test.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Shapes that are in no configuration: what Choir's masks, head partitions and limits require of cuDNN.
class CudnnShapes : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  }
  CudnnAttention cudnn_ = on("h100");
};

TEST_F(CudnnShapes, AcceptsWindowsUnequalLengthsAndPartsOfGroups) {
  std::vector<NamedShape> shapes = {
      {"window", packed(2, 1000, 4, 2, 64)},    {"two-sided", packed(2, 1000, 4, 2, 64)},
      {"one-sided", packed(2, 1000, 4, 2, 64)}, {"last queries", packed(2, 640, 4, 4, 64)},
      {"cross", packed(2, 640, 4, 4, 64)},      {"parts", packed(2, 512, 5, 3, 64)}};
  shapes[0].shape.band = causal_band(1000, 1000, 256);
  shapes[1].shape.band = {-255, 255};
  shapes[2].shape.band = {-255, kernels::unlimited};
  shapes[3].shape.q_length = 128;
  shapes[3].shape.band = causal_band(128, 640);
  shapes[4].shape.q_length = 100;
  shapes[4].shape.band = full_band();
  shapes[5].shape.group_size = 3;  // query heads 2 | 3 4 5 | 6 of key/value heads 0 | 1 | 2
  shapes[5].shape.group_offset = 2;
  for (const NamedShape& named : shapes) {
    for (const AttentionPass pass : {AttentionPass::forward, AttentionPass::backward}) {
      const char* name = pass == AttentionPass::forward ? "forward" : "backward, deterministic";
      const CudnnAttentionPlan& plan = cudnn_.plan(pass, named.shape);
      print_row("h100", named, name, plan);
      EXPECT_EQ(plan.refusal, "") << named.name << " " << name;
      EXPECT_EQ(plan.calls, named.name == "parts" ? 3 : 1) << named.name << " " << name;
    }
  }
}

// Lengths in no configuration, and queries and keys of different lengths.
TEST_F(CudnnShapes, NeedsTheCountedWorkspaceAtEveryLength) {
  CudnnAttention free_order = on("h100", false);
  for (const auto& [queries, keys] : {std::pair{40, 40},
                                      {65, 65},
                                      {100, 100},
                                      {136, 136},
                                      {192, 192},
                                      {200, 200},
                                      {320, 320},
                                      {40, 192},
                                      {192, 40},
                                      {64, 200},
                                      {200, 64},
                                      {100, 640}}) {
    AttentionShape shape = packed(3, keys, 4, 2, 64);
    shape.q_length = queries;
    shape.band = full_band();
    for (const bool is_deterministic : {true, false}) {
      const CudnnAttentionPlan& plan = (is_deterministic ? cudnn_ : free_order).plan(AttentionPass::backward, shape);
      ASSERT_EQ(plan.refusal, "") << queries << " x " << keys;
      const auto memory = kernels::cuda::cudnn_backward_memory(shape, is_deterministic);
      ASSERT_TRUE(memory);
      EXPECT_EQ(memory->workspace_bytes, plan.workspace_bytes) << queries << " x " << keys << ", " << is_deterministic;
    }
  }
}

// 4 * 8192^2 scores of 2 bytes for each of 8 key/value heads: two slices of the batch, eight of the heads.
TEST_F(CudnnShapes, CutsALargeDeterministicBackwardIntoSlices) {
  const NamedShape long_one{"long", packed(2, 8192, 32, 8, 128)};
  const CudnnAttentionPlan& plan = cudnn_.plan(AttentionPass::backward, long_one.shape);
  print_row("h100", long_one, "backward, deterministic", plan);
  EXPECT_EQ(plan.refusal, "");
  EXPECT_EQ(plan.calls, 16);
  EXPECT_GT(plan.workspace_bytes, workspace_limit_bytes / 2);
  EXPECT_LE(plan.workspace_bytes, workspace_limit_bytes);
}

TEST_F(CudnnShapes, RefusesWhatCudnnDoesNotSupport) {
  const auto refusal = [&](AttentionPass pass, const AttentionShape& shape) {
    return cudnn_.plan(pass, shape).refusal;
  };
  EXPECT_NE(refusal(AttentionPass::backward, packed(1, 32768, 32, 8, 128)).find("workspace"), std::string::npos);
  EXPECT_NE(refusal(AttentionPass::forward, packed(1, 512, 4, 4, 100)).find("16 bytes"), std::string::npos);
  AttentionShape unseen = packed(1, 512, 4, 4, 64);
  unseen.kv_length = 256;
  unseen.band = causal_band(512, 256);
  EXPECT_NE(refusal(AttentionPass::forward, unseen).find("see no key"), std::string::npos);
  unseen.band = {1, 0};
  EXPECT_NE(refusal(AttentionPass::forward, unseen).find("see no key"), std::string::npos);
  AttentionShape few_keys = unseen;
  few_keys.band = {-400, 100};
  EXPECT_NE(refusal(AttentionPass::forward, few_keys).find("as many keys as queries"), std::string::npos);
  AttentionShape off_diagonal = packed(1, 512, 4, 4, 64);
  off_diagonal.q_length = 256;
  off_diagonal.band = {-kernels::unlimited, 200};
  AttentionShape scored = packed(1, 512, 4, 4, 64);
  scored.score.soft_cap = 50;
  EXPECT_NE(refusal(AttentionPass::forward, scored).find("soft cap"), std::string::npos);
  scored.score = {.alibi_heads = 4};
  EXPECT_NE(refusal(AttentionPass::backward, scored).find("ALiBi"), std::string::npos);
  EXPECT_NE(refusal(AttentionPass::backward, off_diagonal).find("diagonal"), std::string::npos);
  // The message of cuDNN.
  const std::string wide = refusal(AttentionPass::backward, packed(1, 512, 4, 4, 512));
  std::printf("width 512: %s\n", wide.c_str());
  EXPECT_TRUE(wide.starts_with("cuDNN refuses")) << wide;
}

}  // namespace
}  // namespace choir
