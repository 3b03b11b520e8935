// Ranks that compute longer than others with the same work, for which all others wait in every step.
//
// The time of a step is the time in collective calls, in which a rank mostly waits, and the rest, in which it computes.
// A rank is compared with those at the same place of the tensor, context and pipeline axes, which do the same work. If
// there are none, all ranks are compared by what the plan counts for each. As operations are not equally fast, a rank
// may then need half as much time again, unless it has been faster before.
//
// On a GPU the host does not see when a call waits: nothing is compared.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"

namespace choir {

/// Of one rank, over the steps since the last comparison.
struct RankTimes {
  MeshShape::Coordinates at;
  double compute = 0;           ///< seconds of a step, the median
  double compute_at_least = 0;  ///< in three quarters of the steps
  double waiting = 0;           ///< seconds of a step in calls, the median
  double counted = 1;           ///< operations of a step, by the plan
  std::string host;
};

struct SlowRank {
  int rank;
  double ratio;  ///< of its time to that of the others
  bool operator==(const SlowRank&) const = default;
};

/// The ranks that are more than 10 % slower than the median of the others in three quarters of their steps, if that is
/// more than 5 % of the step: a rank that only waits for a slower one computes for a few milliseconds, of which 10 % are
/// noise. `lowest` has the lowest ratio so far of each rank, for ranks without others at their place; it is updated. Pure.
std::vector<SlowRank> find_slow_ranks(const std::vector<RankTimes>& ranks, std::vector<double>& lowest);

class Stragglers {
 public:
  /// `ring` has the calls of this rank, and outlives this. Nothing is measured if train.straggler_every is 0.
  Stragglers(const Config& config, const Device& device, const Mesh& mesh, const CallRing& ring);

  /// Around a step.
  void begin_step();
  void end_step();

  /// True if train.straggler_every seconds have passed since the last comparison, and enough steps are known.
  bool is_due() const;
  struct Comparison {
    std::vector<RankTimes> ranks;
    std::vector<SlowRank> slow;
  };
  /// The result is that of rank 0; the others get an empty one. Collective.
  Comparison compare(Communicator& host);

 private:
  using Clock = std::chrono::steady_clock;

  const Config& config_;
  MeshShape shape_;
  MeshShape::Coordinates here_;
  const CallRing& ring_;
  bool measures_ = false;
  double counted_ = 1;
  Clock::time_point last_ = Clock::now(), step_began_;
  double in_calls_ = 0;
  std::vector<double> compute_, waiting_;  // of steps
  std::vector<double> lowest_;             // find_slow_ranks(); of rank 0
};

}  // namespace choir
