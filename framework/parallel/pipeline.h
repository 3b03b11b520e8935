// Pipeline parallelism: what moves between the stages, and where the model is cut.
//
// Schedules say what each stage computes. A pass over the schedules of all stages adds the messages: it puts all
// messages and actions in one order, by planned time, and gives each stage its part of this order. So both ends come to
// a message after the same others, and no stages wait for each other in a circle, even if every send waits for its
// receiver (MPI's rendezvous, NCCL's kernels).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "framework/parallel/head_partition.h"
#include "framework/parallel/schedule.h"

namespace choir {

/// A message of one micro-batch between the stages of two neighbouring pieces.
struct Transfer {
  Action::Kind kind;  ///< forward: an output goes on to piece + 1; backward: a gradient goes back to piece - 1
  int micro_batch = 0;
  int piece = 0;  ///< that made it
  int peer = 0;   ///< the stage at the other end
  bool operator==(const Transfer&) const = default;
};

/// What a stage does next: it exchanges (one call, both ways), then acts. Messages between the same two stages are in
/// the same order at both ends. Only the last step of a stage may be without an action.
struct StageStep {
  std::vector<Transfer> sends = {}, receives = {};
  std::optional<Action> action = {};
  bool operator==(const StageStep&) const = default;
};

/// The steps of every stage (index: stage). `schedules` are those of all stages and executable. Neighbouring pieces on
/// one stage need no message: so one stage has none.
std::vector<std::vector<StageStep>> with_transfers(const Pipeline&, const std::vector<std::vector<Action>>& schedules);

/// "" if every stage comes to its end, though no step ends before the partners of all its messages have come to theirs;
/// else which stage waits for what for ever, a line for each.
std::string find_deadlock(const std::vector<std::vector<StageStep>>&);

/// "" if any two stages have their messages in the same order at both ends; else the first message that differs.
std::string find_disorder(const std::vector<std::vector<StageStep>>&);

/// Cuts the parts of a model into `pieces` stretches [begin, end), none empty, so that the largest cost is the least
/// possible; of equal cuts the earliest. `costs` are not negative, and there are at least `pieces` of them.
std::vector<Slice> cut_by_cost(const std::vector<double>& costs, int pieces);

}  // namespace choir
