#include "framework/train/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "framework/train/trainer.h"

namespace choir {
namespace {

RankPlan plan_rank(const Config& config, const MeshShape& shape, int rank, CountOnly what, int threads, Plan& plan) {
  Device device(what, threads);
  CallRing ring;
  Mesh mesh = make_counting_mesh(rank, shape, device, ring);
  Trainer trainer(config, device, mesh);
  plan.parameters = trainer.parameters().global_count();
  const ReadSample nothing = [](std::int64_t, std::span<std::int32_t>, std::span<std::int32_t>) {
    return std::int64_t{0};
  };
  trainer.step(1, nothing);
  device.ledger().enabled = true;
  trainer.step(2, nothing);

  RankPlan result{.at = shape.coordinates(rank), .owned_parameters = trainer.parameters().owned_count()};
  for (const Parameter& p : trainer.parameters().parameters()) result.held_parameters += p.held.count();
  result.peak = device.allocator().at_peak();
  result.operations = device.ledger().operations();
  result.traffic = device.ledger().traffic();
  result.flops = device.ledger().total_flops();
  return result;
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

const RankPlan& Plan::worst() const {
  return *std::max_element(ranks.begin(), ranks.end(),
                           [](const RankPlan& a, const RankPlan& b) { return a.peak.total() < b.peak.total(); });
}

Plan make_plan(const Config& config, std::int64_t ranks, CountOnly device, int threads) {
  Plan plan{.shape = mesh_shape(config, ranks), .model_flops = model_flops(config.model, config.train.batch)};
  for (int tensor = 0; tensor < plan.shape.tensor; ++tensor) {
    const int rank = plan.shape.rank({.tensor = tensor});
    plan.ranks.push_back(plan_rank(config, plan.shape, rank, device, threads, plan));
  }
  return plan;
}

std::string describe(const Plan& plan, const Config& config) {
  const MeshShape& s = plan.shape;
  std::string text = fmt::format("{} parameters on {} ranks: tensor {}, context {}, data {}, pipeline {}\n",
                                 plan.parameters, s.ranks(), s.tensor, s.context, s.data, s.pipeline);
  const HeadPartition heads{config.model.attention.heads, config.model.kv_heads(), s.tensor};
  text += heads.describe() + fmt::format("largest share of heads over the mean: {:.3f}\n", heads.imbalance());

  const RankPlan& worst = plan.worst();
  text += fmt::format("\nthe rank with the largest peak: tensor {}, {} of the parameters held, {} counted here\n",
                      worst.at.tensor, worst.held_parameters, worst.owned_parameters);
  text += "memory at its peak\n";
  for (int kind = 0; kind < num_memory_kinds; ++kind)
    text += fmt::format("  {:<18} {:>12}\n", name_of(static_cast<MemoryKind>(kind)),
                        gigabytes(worst.peak.bytes[static_cast<std::size_t>(kind)]));
  text += fmt::format("  {:<18} {:>12}\n", "total", gigabytes(worst.peak.total()));

  text += fmt::format("\none step: {:.3f} TFLOP of the model over all ranks, {:.3f} TFLOP executed on this rank\n",
                      plan.model_flops / 1e12, worst.flops / 1e12);
  text += fmt::format("  {:<22} {:>8} {:>12} {:>12}\n", "operation", "calls", "GFLOP", "GB");
  for (const Ledger::Operation& o : worst.operations)
    text +=
        fmt::format("  {:<22} {:>8} {:>12.3f} {:>12.3f}\n", o.name, o.calls, o.cost.flops / 1e9, o.cost.bytes / 1e9);
  text += fmt::format("\n  {:<10} {:<16} {:>10} {:>12}\n", "axis", "collective", "messages", "GB");
  for (const Ledger::Traffic& t : worst.traffic)
    text += fmt::format("  {:<10} {:<16} {:>10} {:>12.4f}\n", t.axis, t.verb, t.messages, t.bytes / 1e9);
  if (worst.traffic.empty()) text += "  none: one rank talks to nobody\n";
  return text;
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
                     {"owned_parameters", r.owned_parameters},
                     {"held_parameters", r.held_parameters},
                     {"peak_bytes", r.peak.total()},
                     {"needed_bytes", r.needed_bytes()},
                     {"memory", memory},
                     {"flops", r.flops},
                     {"operations", operations},
                     {"traffic", traffic}});
  }
  return Json{{"parameters", plan.parameters},
              {"ranks", plan.shape.ranks()},
              {"model_flops", plan.model_flops},
              {"positions", ranks}}
             .dump(2) +
         "\n";
}

}  // namespace choir
