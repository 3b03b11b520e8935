// Pipeline schedules as data: a pure function from the shape of the pipeline to the list of actions of each stage.
//
// The schedules differ in where the chunks of the model lie, in whether backward is split in two, and in how many
// micro-batches a stage may hold. One stage with one chunk gives F0 B0 F1 B1 ...: gradient accumulation. There is no
// other training loop.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "framework/core/names.h"

namespace choir {

enum class PipelineSchedule {
  one_forward_one_backward,  ///< Narayanan et al. 2019, arXiv 1806.03377 (PipeDream's order, with a flush)
  interleaved,               ///< the same with several chunks on each stage: Narayanan et al. 2021, arXiv 2104.04473
  zero_bubble,               ///< backward is split, memory as in 1F1B (ZB-H1): Qi et al. 2023, arXiv 2401.10241
  v_shaped,                  ///< split, two chunks, memory as in 1F1B (V-ZB): Qi et al. 2024, arXiv 2405.15362
};
template <>
inline constexpr auto names<PipelineSchedule> = std::array{"1f1b", "interleaved", "zero_bubble", "v"};

/// `backward` includes the weight gradients unless the schedule splits backward.
struct Action {
  enum class Kind : std::uint8_t { forward, backward, weights } kind;
  int micro_batch = 0, chunk = 0;
  bool operator==(const Action&) const = default;
};

/// Where each piece of the model lies, and how the pieces are run. The model is cut into stages * chunks pieces, in the
/// order of forward. Chunk c of the stages is a run of `stages` pieces; in the V shape, odd chunks run from the last
/// stage to the first.
struct Pipeline {
  PipelineSchedule schedule = PipelineSchedule::one_forward_one_backward;
  int stages = 1, chunks = 1;  ///< one_forward_one_backward with several chunks is `interleaved`; v_shaped has two
  int micro_batches = 1;

  bool splits_backward() const {
    return schedule == PipelineSchedule::zero_bubble || schedule == PipelineSchedule::v_shaped;
  }
  int pieces() const { return stages * chunks; }
  int piece(int stage, int chunk) const { return chunk * stages + (runs_back(chunk) ? stages - 1 - stage : stage); }
  int stage_of(int piece) const {
    const int place = piece % stages;
    return runs_back(chunk_of(piece)) ? stages - 1 - place : place;
  }
  int chunk_of(int piece) const { return piece / stages; }
  /// The most (chunk, micro-batch) pairs between forward and the end of backward (of the weight gradients if split).
  int limit(int stage) const;

 private:
  bool runs_back(int chunk) const { return schedule == PipelineSchedule::v_shaped && chunk % 2 == 1; }
};

/// Relative durations of each piece (index: piece). An empty list: 1 for every piece. A backward that is not split
/// takes backward + weights.
struct PieceTimes {
  std::vector<double> forward = {}, backward = {}, weights = {};
};

/// The actions of every stage (index: stage), the same on all ranks. Every (chunk, micro-batch) once of each kind; for
/// each kind and chunk the micro-batches are in ascending order. 1F1B, interleaved and zero-bubble schedules with one
/// chunk are closed forms; the rest is made by a greedy rule: a stage that is free begins a backward that is ready,
/// else a forward while its memory lasts, else a weight gradient.
std::vector<std::vector<Action>> make_schedules(const Pipeline&);

/// The most (chunk, micro-batch) pairs between forward and the end of backward (of the weight gradients if the schedule
/// has such actions): the number of Saved slots that are needed.
int peak_in_flight(const std::vector<Action>& schedule);

/// When each action runs if messages take no time, in the unit of PieceTimes.
struct Timeline {
  struct Span {
    double begin = 0, end = 0;
  };
  std::vector<std::vector<Span>> spans;  ///< by stage and place in its schedule

  double makespan() const;  ///< the last end
  double bubble() const;    ///< the share of the stages' time in which no action runs: 1 - busy / (stages * makespan)
};
/// `schedules` are those of all stages and executable: no action reads what a later action of its stage makes.
Timeline timeline(const Pipeline&, const std::vector<std::vector<Action>>& schedules, const PieceTimes& = {});

}  // namespace choir
