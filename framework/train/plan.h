// The plan: the memory, operations and messages of a run, counted by running the real program on device `count`.
//
// Two steps of the training program in one process: the first fills the free lists, the second is counted. There is no
// other model of memory or cost. The steady period of the schedule is counted once, and so are ranks of equal shares.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"

namespace choir {

/// What one rank holds and does in one step.
struct RankPlan {
  MeshShape::Coordinates at;
  std::int64_t owned_parameters = 0, held_parameters = 0;
  MemoryUse peak;              ///< of the allocator, by kind
  std::int64_t offloaded = 0;  ///< bytes in pinned memory of the host
  std::vector<Ledger::Operation> operations;
  std::vector<Ledger::Traffic> traffic;
  double flops = 0;
  std::int64_t needed_bytes() const;  ///< parameters, gradients, optimizer state and saved activations
};

struct Plan {
  MeshShape shape;
  std::int64_t parameters = 0;     ///< of the whole model
  double model_flops = 0;          ///< of one step, over all ranks
  std::string stages;              ///< Trainer::describe_stages()
  std::string context_kind;        ///< how attention gets the keys of other context ranks; empty without them
  std::int64_t micro_batches = 0;  ///< of a step, on each data rank
  double bubble = 0;               ///< Trainer::bubble()
  std::vector<RankPlan> ranks;     ///< by stage, context, expert and tensor rank: else data ranks are alike
  const RankPlan& worst() const;   ///< the largest peak
};

/// The plan for ranks on such devices. `threads` per CPU rank: workspaces depend on it. The configuration is valid for
/// `ranks`.
///
/// A step has a part C that runs once, and n micro-batches. All but the first few of them, as many as are in flight at
/// once, do the same work P between the same amounts of memory in use: the totals of n are those of m < n, plus
/// (n - m) P, with P from two short steps, and the peak is that of the longer of these.
Plan make_plan(const Config&, std::int64_t ranks, CountOnly device, int threads);

/// One step of `rank` as the program runs it, with every micro-batch: make_plan() must give the same.
RankPlan count_step(const Config&, const MeshShape&, int rank, CountOnly device, int threads);

/// The plan as text: head map and imbalance, a line for each stage, then the memory by kind, the operations and the
/// messages by axis of the rank with the largest peak.
std::string describe(const Plan&, const Config&);
/// The same as one JSON object.
std::string to_json(const Plan&);

}  // namespace choir
