// Ranks that compute longer than others with the same work, for which all others wait in every step.
//
// The time of a step is the time in collective calls, in which a rank mostly waits, and the rest, in which it computes.
// On a GPU it is that of the compute stream, which waits for the streams of collective calls. A rank is compared with
// those at the same place of the tensor, context and pipeline axes, which do the same work. If there are none, all
// ranks are compared by what the plan counts for each. As operations are not equally fast, a rank may then need half as
// much time again, unless it has been faster before.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/core/gpu_timer.h"

namespace choir {

/// Of one rank, over the steps since the last comparison.
struct RankTimes {
  MeshShape::Coordinates at;
  double compute = 0;           ///< seconds of a step, the median
  double compute_at_least = 0;  ///< in three quarters of the steps
  double waiting = 0;           ///< seconds of a step in calls, the median
  double counted = 1;           ///< operations of a step, by the plan
  std::string host;
  std::string device;  ///< the address of a GPU; empty: a CPU
};

struct SlowRank {
  int rank;
  double ratio;  ///< of its time to that of the others
  bool operator==(const SlowRank&) const = default;
};

/// The ranks that are more than 10 % slower than the median of the others in three quarters of their steps, if that is
/// more than 5 % of the step: a rank that only waits for a slower one computes for a few milliseconds, of which 10 %
/// are noise. `lowest` has the lowest ratio so far of each rank, for ranks without others at their place; it is
/// updated. Pure.
std::vector<SlowRank> find_slow_ranks(const std::vector<RankTimes>& ranks, std::vector<double>& lowest);

class Stragglers {
 public:
  /// `ring` has the calls of this rank; it and `device` outlive this. Nothing is measured if train.straggler_every is
  /// 0.
  Stragglers(const Config& config, Device& device, const Mesh& mesh, const CallRing& ring);
  ~Stragglers();
  Stragglers(const Stragglers&) = delete;
  Stragglers& operator=(const Stragglers&) = delete;

  /// Around what the host does for a step. A GPU may be behind.
  void begin_step();
  void end_step();
  /// The oldest of these steps is done; or none of them counts.
  void finish_step();
  void forget_steps() { begun_.clear(); }

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
  Device& device_;
  MeshShape shape_;
  MeshShape::Coordinates here_;
  const CallRing& ring_;
  bool measures_ = false;
  double counted_ = 1;
  Clock::time_point last_ = Clock::now(), step_began_;
  double in_calls_ = 0;
  /// A step that is not done, or not known to be.
  struct Step {
    std::optional<cuda::StreamTimer> timer;  // on a GPU
    double seconds = 0, waiting = 0;
  };
  std::deque<Step> begun_;
  std::vector<double> compute_, waiting_;  // of steps
  std::vector<double> lowest_;             // find_slow_ranks(); of rank 0
};

}  // namespace choir
