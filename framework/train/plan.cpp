#include "framework/train/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

#include "framework/core/quantity.h"
#include "framework/train/determinism_cost.h"
#include "framework/train/trainer.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"

namespace choir {
namespace {

/// One rank's trainer on device `count`; it needs no other ranks.
struct CountingRank {
  CountingRank(const Config& config, const MeshShape& shape, int rank, CountOnly what, int threads)
      : device(what, threads), mesh(make_counting_mesh(rank, shape, device, ring)), trainer(config, device, mesh) {}

  Device device;
  CallRing ring;
  Mesh mesh;
  Trainer trainer;
};

/// Everything by which the programs of two ranks of a stage can differ.
struct Share {
  struct Part {
    std::int64_t rows, columns, owned_rows;
    bool operator==(const Part&) const = default;
  };
  std::vector<Part> parameters;    // held
  std::int64_t group_offset = 0;   // of the first query head in the group of its key/value head
  std::int64_t rows_of_batch = 0;  // of a micro-batch, held between layers
  std::int64_t rows_of_source = 0;
  ContextWork context_work, source_work, cross_work;
  std::vector<std::int64_t> table_bytes;  // of the optimizer's tables: segments, counted ranges
  std::int64_t sign_steps = 0;            // kernel calls of the optimizer for these
  bool operator==(const Share&) const = default;
};

/// The share of the rank at `at`, which holds the same parameters as `trainer`: of the same stage, tensor rank and
/// expert rank.
Share share_of(Trainer& trainer, const MeshShape& shape, const MeshShape::Coordinates& at) {
  const Config& config = trainer.config();
  const AttentionSpec attention = trainer.attention_spec();
  const RowShare rows = rows_at(config, shape, at, 0, trainer.micro_batch()).share();
  Share share{
      .group_offset = attention.heads.group_offset(at.tensor),
      .rows_of_batch = rows.end - rows.begin,
      .context_work = context_work(attention, trainer.context_kind(), config.model.context, shape.context, at.context)};
  if (config.model.has_source()) {
    const RowShare of_source = source_rows_at(config, shape, at, 0, trainer.micro_batch()).share();
    const std::int64_t length = config.model.source_length();
    AttentionSpec encoder = attention;
    encoder.band = source_band(config.model);
    encoder.routing = head_routing(config.model, length);
    const ContextKind kind =
        context_kind(config.parallel.context_kind, encoder, length, shape.context, trainer.runtime().compute_type);
    share.rows_of_source = of_source.end - of_source.begin;
    share.source_work = context_work(encoder, kind, length, shape.context, at.context);
    AttentionSpec cross = attention;  // if its streams are aligned; else all ranks do the same
    cross.routing = {};
    const ContextKind kind_across = context_kind(config.parallel.context_kind, cross, config.model.context,
                                                 shape.context, trainer.runtime().compute_type);
    share.cross_work = context_work(cross, kind_across, config.model.context, shape.context, at.context);
  }
  for (const Parameter& p : trainer.parameters().parameters())
    share.parameters.push_back({p.held.rows(), p.held.columns(), p.owned_end - p.owned_begin});

  const Group gradient = shape.gradient_group(shape.rank(at)), shard = shape.shard_group(shape.rank(at));
  std::vector<FlatRange> updated, counted;
  for (const Bucket& bucket :
       make_buckets(trainer.parameters(), static_cast<int>(config.parallel.zero),
                    {gradient.size, gradient.rank, shard.size, shape.expert}, default_bucket_elements)) {
    updated.push_back(bucket.updated);
    counted.push_back(bucket.counted);
  }
  std::int64_t segments = 0;
  for (const ParameterPart& part : parts_in(trainer.parameters(), updated, false))
    ++(part.parameter->sign_step ? share.sign_steps : segments);
  const std::vector<ParameterPart> squared = parts_in(trainer.parameters(), counted, true);
  const auto add_table = [&](std::int64_t entries, std::size_t size) {
    share.table_bytes.push_back(entries == 0 ? 0 : Allocator::rounded(entries * static_cast<std::int64_t>(size)));
  };
  add_table(segments, sizeof(kernels::OptimizerSegment));
  add_table(std::count_if(squared.begin(), squared.end(),
                          [](const ParameterPart& part) { return !part.parameter->sign_step; }),
            sizeof(kernels::Range));
  return share;
}

/// The configuration with steps of `count` micro-batches of the same size.
Config with_micro_batches(Config config, const Trainer& trainer, std::int64_t data_ranks, std::int64_t count) {
  config.parallel.micro_batch = trainer.micro_batch();
  config.train.batch = data_ranks * trainer.micro_batch() * count;
  return config;
}

/// Adds `times` times the difference between `more` and `fewer` to `more`. Every entry of `more` is in `fewer`,
/// possibly at another place: the last operations of a short step come before the next ones of a longer step.
void repeat(RankPlan& more, const RankPlan& fewer, std::int64_t times) {
  const auto n = static_cast<double>(times);
  for (Ledger::Operation& o : more.operations) {
    const auto before = std::find_if(fewer.operations.begin(), fewer.operations.end(),
                                     [&](const Ledger::Operation& f) { return f.name == o.name; });
    assert(before != fewer.operations.end());
    o.calls += times * (o.calls - before->calls);
    o.cost.flops += n * (o.cost.flops - before->cost.flops);
    o.cost.bytes += n * (o.cost.bytes - before->cost.bytes);
  }
  for (Ledger::Traffic& t : more.traffic) {
    const auto before = std::find_if(fewer.traffic.begin(), fewer.traffic.end(),
                                     [&](const Ledger::Traffic& f) { return f.axis == t.axis && f.verb == t.verb; });
    assert(before != fewer.traffic.end());
    t.messages += times * (t.messages - before->messages);
    t.bytes += n * (t.bytes - before->bytes);
  }
  more.flops += n * (more.flops - fewer.flops);
}

RankPlan plan_rank(const Config& config, const Trainer& trainer, const MeshShape& shape, int rank, CountOnly what,
                   int threads) {
  const auto step_of = [&](std::int64_t count) {
    return count_step(with_micro_batches(config, trainer, shape.data, count), shape, rank, what, threads);
  };
  // Once the pipeline is full, a schedule repeats itself after as many micro-batches as there are stages.
  const Pipeline& pipeline = trainer.pipeline();
  const std::int64_t all = pipeline.micro_batches, period = pipeline.stages, fills = 2 * pipeline.pieces() - 1;
  if (all <= fills + period) return step_of(all);
  const std::int64_t base = fills + (all - fills) % period;
  RankPlan plan = step_of(base + period);
  repeat(plan, step_of(base), (all - base) / period - 1);
  return plan;
}

/// The rank with the largest peak, of those of stage `stage` if it is not negative.
const RankPlan& largest_peak(const std::vector<RankPlan>& ranks, int stage = -1) {
  const RankPlan* largest = nullptr;
  for (const RankPlan& rank : ranks)
    if ((stage < 0 || rank.at.pipeline == stage) && (!largest || rank.peak.total() > largest->peak.total()))
      largest = &rank;
  return *largest;
}

/// A line for each stage: memory by kind, operations and messages of its rank with the largest peak.
std::string describe_each_stage(const Plan& plan) {
  std::string text = "\neach stage: the rank with the largest peak, its memory in GB, and one step of it\nstage";
  for (int kind = 0; kind < num_memory_kinds; ++kind)
    text += fmt::format("  {}", name_of(static_cast<MemoryKind>(kind)));
  text += fmt::format("  {:>8}  {:>9}  {:>8}  {:>9}\n", "total", "TFLOP", "messages", "sent GB");
  for (int stage = 0; stage < plan.shape.pipeline; ++stage) {
    const RankPlan& rank = largest_peak(plan.ranks, stage);
    text += fmt::format("{:>5}", stage);
    for (int kind = 0; kind < num_memory_kinds; ++kind) {
      const std::size_t width = std::string_view(name_of(static_cast<MemoryKind>(kind))).size();
      text +=
          fmt::format("  {:>{}.3f}", static_cast<double>(rank.peak.bytes[static_cast<std::size_t>(kind)]) / 1e9, width);
    }
    std::int64_t messages = 0;
    double bytes = 0;
    for (const Ledger::Traffic& t : rank.traffic) {
      messages += t.messages;
      bytes += t.bytes;
    }
    text += fmt::format("  {:>8.3f}  {:>9.3f}  {:>8}  {:>9.4f}\n", static_cast<double>(rank.peak.total()) / 1e9,
                        rank.flops / 1e12, messages, bytes / 1e9);
  }
  return text;
}

std::string gigabytes(std::int64_t bytes) { return fmt::format("{:.3f} GB", static_cast<double>(bytes) / 1e9); }

}  // namespace

std::int64_t RankPlan::needed_bytes() const {
  std::int64_t bytes = 0;
  for (const MemoryKind kind :
       {MemoryKind::parameters, MemoryKind::gradients, MemoryKind::optimizer, MemoryKind::saved})
    bytes += peak.bytes[static_cast<std::size_t>(kind)];
  return bytes;
}

const RankPlan& Plan::worst() const { return largest_peak(ranks); }

RankPlan count_step(const Config& config, const MeshShape& shape, int rank, CountOnly what, int threads) {
  CountingRank counted(config, shape, rank, what, threads);
  Trainer& trainer = counted.trainer;
  const ReadSample nothing = [](std::int64_t, const Sample&) { return std::int64_t{0}; };
  AttentionRecord attention;  // the largest peak is that of a step that looks into its heads
  if (config.train.inspect_every > 0) trainer.set_attention(&attention, 1);
  const auto forget = [&] { attention = {}; };
  trainer.step(1, nothing, forget);
  counted.device.ledger().enabled = true;
  trainer.step(2, nothing, forget);

  RankPlan result{.at = shape.coordinates(rank), .owned_parameters = trainer.parameters().owned_count()};
  for (const Parameter& p : trainer.parameters().parameters()) result.held_parameters += p.held.count();
  result.peak = counted.device.allocator().at_peak();
  result.offloaded = trainer.offloaded_bytes();
  result.operations = counted.device.ledger().operations();
  result.traffic = counted.device.ledger().traffic();
  result.flops = counted.device.ledger().total_flops();
  return result;
}

Plan make_plan(const Config& config, std::int64_t ranks, CountOnly device, int threads) {
  Plan plan{.shape = mesh_shape(config, ranks),
            .parameters = all_parameters(config.model).global_count(),
            .model_flops = model_flops(config.model, config.train.batch)};
  const MeshShape& shape = plan.shape;
  // Data ranks are alike, except for the experts that they hold.
  const int data_positions = shape.expert / std::gcd(shape.expert, shape.context);
  for (int stage = 0; stage < shape.pipeline; ++stage) {
    // Parameters depend on the stage, the tensor rank and the expert rank only.
    std::vector<std::unique_ptr<CountingRank>> declared;  // [expert rank][tensor rank]
    for (int expert = 0; expert < shape.expert; ++expert)
      for (int tensor = 0; tensor < shape.tensor; ++tensor)
        declared.push_back(std::make_unique<CountingRank>(config, shape,
                                                          shape.rank({.tensor = tensor,
                                                                      .context = expert % shape.context,
                                                                      .data = expert / shape.context,
                                                                      .pipeline = stage}),
                                                          device, threads));
    if (stage == 0) {
      const Trainer& first = declared.front()->trainer;
      plan.stages = first.describe_stages();
      if (shape.context > 1) plan.context_kind = name_of(first.context_kind());
      plan.bubble = first.bubble();
      plan.micro_batches = first.micro_batches();
    }
    std::vector<Share> shares;  // of the ranks of this stage
    const std::size_t first_plan = plan.ranks.size();
    for (int context = 0; context < shape.context; ++context)
      for (int data = 0; data < data_positions; ++data)
        for (int tensor = 0; tensor < shape.tensor; ++tensor) {
          const MeshShape::Coordinates at{.tensor = tensor, .context = context, .data = data, .pipeline = stage};
          const int expert = shape.expert_group(shape.rank(at)).rank;
          Trainer& trainer = declared[static_cast<std::size_t>(expert * shape.tensor + tensor)]->trainer;
          shares.push_back(share_of(trainer, shape, at));
          const auto equal =
              static_cast<std::size_t>(std::find(shares.begin(), shares.end(), shares.back()) - shares.begin());
          RankPlan here = first_plan + equal < plan.ranks.size()
                              ? plan.ranks[first_plan + equal]
                              : plan_rank(config, trainer, shape, shape.rank(at), device, threads);
          here.at = at;
          plan.ranks.push_back(std::move(here));
        }
  }
  return plan;
}

std::string describe(const Plan& plan, const Config& config) {
  const MeshShape& s = plan.shape;
  std::string text = fmt::format("{} parameters on {}: tensor {}, context {}, data {}, pipeline {}\n", plan.parameters,
                                 quantity(s.ranks(), "rank"), s.tensor, s.context, s.data, s.pipeline);
  if (s.expert > 1) text += fmt::format("expert {}: these ranks of context and data share the experts\n", s.expert);
  const HeadPartition heads{config.model.attention.heads, config.model.kv_heads(), s.tensor};
  text += heads.describe() + fmt::format("largest share of heads over the mean: {:.3f}\n", heads.imbalance());

  if (!plan.context_kind.empty())
    text += fmt::format("keys and values of other context ranks: {}\n", plan.context_kind);
  if (!plan.stages.empty())
    text +=
        fmt::format("{}\nbubble of {} with {}: {:.1f} % of the stages' time, by counted operations\n", plan.stages,
                    name_of(config.parallel.schedule), quantity(plan.micro_batches, "micro-batch"), 100 * plan.bubble);

  if (s.pipeline > 1) text += describe_each_stage(plan);
  const RankPlan& worst = plan.worst();
  const std::string stage = s.pipeline > 1 ? fmt::format(", stage {}", worst.at.pipeline) : "";
  const std::string context = s.context > 1 ? fmt::format(", context {}", worst.at.context) : "";
  text += fmt::format("\nthe rank with the largest peak: tensor {}{}{}, {} of the parameters held, {} counted here\n",
                      worst.at.tensor, context, stage, worst.held_parameters, worst.owned_parameters);
  text += "memory at its peak\n";
  for (int kind = 0; kind < num_memory_kinds; ++kind)
    text += fmt::format("  {:<18} {:>12}\n", name_of(static_cast<MemoryKind>(kind)),
                        gigabytes(worst.peak.bytes[static_cast<std::size_t>(kind)]));
  text += fmt::format("  {:<18} {:>12}\n", "total", gigabytes(worst.peak.total()));
  if (worst.offloaded > 0)
    text += fmt::format("  {:<18} {:>12}, pinned: train.offload\n", "and of the host", gigabytes(worst.offloaded));

  text += fmt::format("\none step: {:.3f} TFLOP of the model over all ranks, {:.3f} TFLOP executed on this rank\n",
                      plan.model_flops / 1e12, worst.flops / 1e12);
  text += fmt::format("  {:<22} {:>8} {:>12} {:>12}\n", "operation", "calls", "GFLOP", "GB");
  for (const Ledger::Operation& o : worst.operations)
    text +=
        fmt::format("  {:<22} {:>8} {:>12.3f} {:>12.3f}\n", o.name, o.calls, o.cost.flops / 1e9, o.cost.bytes / 1e9);
  text += fmt::format("\n  {:<10} {:<16} {:>10} {:>12}\n", "axis", "collective", "messages", "GB");
  for (const Ledger::Traffic& t : worst.traffic)
    text += fmt::format("  {:<10} {:<16} {:>10} {:>12.4f}\n", t.axis, t.verb, t.messages, t.bytes / 1e9);
  if (worst.traffic.empty()) text += "  none: one rank sends no messages\n";
  return text + describe_determinism(plan, config);
}

std::string to_json(const Plan& plan) {
  using Json = nlohmann::ordered_json;
  Json ranks = Json::array();
  for (const RankPlan& r : plan.ranks) {
    Json memory, operations = Json::array(), traffic = Json::array();
    for (int kind = 0; kind < num_memory_kinds; ++kind)
      memory[name_of(static_cast<MemoryKind>(kind))] = r.peak.bytes[static_cast<std::size_t>(kind)];
    for (const auto& o : r.operations)
      operations.push_back({{"name", o.name}, {"calls", o.calls}, {"flops", o.cost.flops}, {"bytes", o.cost.bytes}});
    for (const auto& t : r.traffic)
      traffic.push_back({{"axis", t.axis}, {"verb", t.verb}, {"messages", t.messages}, {"bytes", t.bytes}});
    ranks.push_back({{"tensor", r.at.tensor},
                     {"context", r.at.context},
                     {"data", r.at.data},
                     {"stage", r.at.pipeline},
                     {"owned_parameters", r.owned_parameters},
                     {"held_parameters", r.held_parameters},
                     {"peak_bytes", r.peak.total()},
                     {"needed_bytes", r.needed_bytes()},
                     {"offloaded_bytes", r.offloaded},
                     {"memory", memory},
                     {"flops", r.flops},
                     {"operations", operations},
                     {"traffic", traffic}});
  }
  return Json{{"parameters", plan.parameters},
              {"ranks", plan.shape.ranks()},
              {"model_flops", plan.model_flops},
              {"bubble", plan.bubble},
              {"positions", ranks}}
             .dump(2) +
         "\n";
}

}  // namespace choir
