#include "framework/train/determinism_cost.h"

#include <fmt/format.h>

#include <algorithm>

#include "framework/parallel/head_partition.h"
#include "kernels/cuda/cudnn_slices.h"

namespace choir {
namespace {

bool may_be_cudnns(const Config& c) {
  const ModelConfig& m = c.model;
  return c.train.device == TrainDevice::cuda && c.train.precision != Precision::f32 &&
         c.train.attention.implementation != AttentionImplementation::flash && !m.has_source() && !m.routes_heads() &&
         !m.separates_documents() && m.attention.prefix == 0 && m.attention.soft_cap == 0 && m.attention.dropout == 0 &&
         m.attention.position != Position::alibi && m.head_width() % 8 == 0;
}

/// One call of the backward of the rank at `at`. In the slices of context ranks all calls have nearly this size.
kernels::AttentionShape shape_of_a_call(const Plan& plan, const Config& config, const MeshShape::Coordinates& at) {
  const ModelConfig& m = config.model;
  const HeadPartition heads{m.attention.heads, m.kv_heads(), plan.shape.tensor};
  kernels::AttentionShape call{.batch = config.train.batch / plan.shape.data / plan.micro_batches,
                               .q_length = m.context,
                               .kv_length = m.context,
                               .heads = heads.query(at.tensor).count(),
                               .kv_heads = heads.key_value(at.tensor).count(),
                               .head_width = m.head_width(),
                               .group_size = heads.group_size(),
                               .group_offset = heads.group_offset(at.tensor)};
  if (plan.context_kind.empty()) return call;
  const std::int64_t ranks = plan.shape.context, slice = (m.context + 2 * ranks - 1) / (2 * ranks);
  switch (value_named<ContextKind>(plan.context_kind).value()) {
    case ContextKind::ring:
      call.q_length = call.kv_length = slice;
      break;
    case ContextKind::heads:
      call.heads = (call.heads + ranks - 1) / ranks;
      call.kv_heads = (call.kv_heads + ranks - 1) / ranks;
      call.group_offset = 0;
      break;
    case ContextKind::gather:
    case ContextKind::automatic:
      call.q_length = slice;
      break;
  }
  return call;
}

std::string describe_setting(const char* setting, const kernels::AttentionShape& call, bool deterministic,
                             std::int64_t calls) {
  const auto memory = kernels::cuda::cudnn_backward_memory(call, deterministic);
  if (!memory)
    return fmt::format("  {:<6} Choir's kernel, since cuDNN's workspace would be larger than {} MiB for one head\n",
                       setting, kernels::cuda::cudnn_workspace_limit_bytes >> 20);
  return fmt::format("  {:<6} workspace {:.3f} GB, of which a step writes and reads {:.3f} GB\n", setting,
                     static_cast<double>(memory->workspace_bytes) / 1e9,
                     2 * static_cast<double>(calls) * memory->all_bytes / 1e9);
}

}  // namespace

std::string describe_determinism(const Plan& plan, const Config& config) {
  if (!may_be_cudnns(config)) return "";
  const RankPlan& worst = plan.worst();
  const auto backward = std::find_if(worst.operations.begin(), worst.operations.end(),
                                     [](const Ledger::Operation& o) { return o.name == "attention backward"; });
  if (backward == worst.operations.end()) return "";
  const kernels::AttentionShape call = shape_of_a_call(plan, config, worst.at);
  return "\ntrain.attention.deterministic, if cuDNN computes the backward of attention on an H100 or H200\n" +
         describe_setting("true", call, true, backward->calls) +
         describe_setting("false", call, false, backward->calls);
}

}  // namespace choir
