// The plan: what a run needs and does, from running the real program on device `count`.
//
// Two steps of the training program, for each distinct position of a rank in the layout, in one process: the first
// fills the free lists, the second is counted. There is no other model of memory or cost.
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
  MemoryUse peak;  ///< of the allocator, by kind
  std::vector<Ledger::Operation> operations;
  std::vector<Ledger::Traffic> traffic;
  double flops = 0;
  std::int64_t needed_bytes() const;  ///< parameters, gradients, optimizer state and saved activations
};

struct Plan {
  MeshShape shape;
  std::int64_t parameters = 0;    ///< of the whole model
  double model_flops = 0;         ///< of one step, over all ranks
  std::vector<RankPlan> ranks;    ///< one for each distinct position: data ranks are alike
  const RankPlan& worst() const;  ///< the largest peak
};

/// What ranks on such devices would need. `threads` per CPU rank: workspaces depend on it. The configuration is valid
/// for `ranks`.
Plan make_plan(const Config&, std::int64_t ranks, CountOnly device, int threads);

/// The plan as text: head map and imbalance, then the worst rank's memory by kind, operations, and messages by axis.
std::string describe(const Plan&, const Config&);
/// The same as one JSON object.
std::string to_json(const Plan&);

}  // namespace choir
