#include "framework/parallel/schedule.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <optional>

#include "framework/parallel/head_partition.h"

namespace choir {

namespace {

using Kind = Action::Kind;
using Schedules = std::vector<std::vector<Action>>;

constexpr double never = std::numeric_limits<double>::infinity();

/// When each action has ended, over all stages, and so when each other action can begin.
class Ends {
 public:
  explicit Ends(const Pipeline& pipeline) : pipeline_(pipeline) {
    for (std::vector<double>& ends : ends_)
      ends.assign(static_cast<std::size_t>(pipeline.pieces()) * static_cast<std::size_t>(pipeline.micro_batches),
                  never);
  }
  double& of(Kind kind, int piece, int micro_batch) {
    return ends_[static_cast<std::size_t>(kind)][at(piece, micro_batch)];
  }
  double of(Kind kind, int piece, int micro_batch) const {
    return ends_[static_cast<std::size_t>(kind)][at(piece, micro_batch)];
  }
  /// When all that the action reads has been made; `never` if the end of one of these actions is not known.
  double ready(Kind kind, int piece, int micro_batch) const {
    switch (kind) {
      case Kind::forward:
        return piece == 0 ? 0 : of(Kind::forward, piece - 1, micro_batch);
      case Kind::backward:
        return piece + 1 == pipeline_.pieces()
                   ? of(Kind::forward, piece, micro_batch)
                   : std::max(of(Kind::forward, piece, micro_batch), of(Kind::backward, piece + 1, micro_batch));
      case Kind::weights:
        return of(Kind::backward, piece, micro_batch);
    }
    return never;
  }

 private:
  std::size_t at(int piece, int micro_batch) const {
    return static_cast<std::size_t>(piece) * static_cast<std::size_t>(pipeline_.micro_batches) +
           static_cast<std::size_t>(micro_batch);
  }

  const Pipeline& pipeline_;
  std::array<std::vector<double>, 3> ends_;
};

double duration(const Pipeline& pipeline, const PieceTimes& times, Kind kind, int piece) {
  const auto of = [&](const std::vector<double>& all) {
    return all.empty() ? 1 : all[static_cast<std::size_t>(piece)];
  };
  switch (kind) {
    case Kind::forward:
      return of(times.forward);
    case Kind::backward:
      return of(times.backward) + (pipeline.splits_backward() ? 0 : of(times.weights));
    case Kind::weights:
      return of(times.weights);
  }
  return 0;
}

/// Chunks take turns, in rounds of at least `stages` micro-batches, if there are as many: the first output of a round
/// is back on the first stage when the round ends there. Rounds are as even as possible; if `stages` divides
/// `micro_batches`, they are those of Megatron-LM.
int round_count(const Pipeline& pipeline) { return std::max(1, pipeline.micro_batches / pipeline.stages); }
Slice round_of(const Pipeline& pipeline, int index) {
  return even_slice(pipeline.micro_batches, round_count(pipeline), index);
}

/// The forwards that a stage runs before the one that its first backward follows (Narayanan et al. 2021). One chunk:
/// one for each stage after it. Several: the way to the last stage and back, and a round of each chunk but the last.
int forwards_ahead(const Pipeline& pipeline, int stage) {
  const int after = pipeline.stages - 1 - stage;
  if (pipeline.chunks == 1) return after;
  return 2 * after + (pipeline.chunks - 1) * static_cast<int>(round_of(pipeline, 0).count());
}

/// A stage runs some forwards ahead, then forward, backward and weights in turn, then drains. Backward begins a round
/// with the deepest chunk. If backward is not split, this is 1F1B and Megatron-LM's interleaving. If it is, weight
/// gradients are late by as many actions as the memory limit allows: ZB-H1.
Schedules closed_form(const Pipeline& pipeline) {
  std::vector<Action> forwards, backwards;
  for (int r = 0; r < round_count(pipeline); ++r)
    for (int c = 0; c < pipeline.chunks; ++c) {
      const Slice round = round_of(pipeline, r);
      for (auto m = static_cast<int>(round.begin); m < round.end; ++m) {
        forwards.push_back({Kind::forward, m, c});
        backwards.push_back({Kind::backward, m, pipeline.chunks - 1 - c});
      }
    }
  const int count = static_cast<int>(forwards.size());
  Schedules schedules(static_cast<std::size_t>(pipeline.stages));
  for (int s = 0; s < pipeline.stages; ++s) {
    const int ahead = forwards_ahead(pipeline, s), late = pipeline.limit(s) - 1 - ahead;
    const auto add = [&, s](const std::vector<Action>& actions, Kind kind, int i) {
      if (i < 0 || i >= count) return;
      const Action& action = actions[static_cast<std::size_t>(i)];
      schedules[static_cast<std::size_t>(s)].push_back({kind, action.micro_batch, action.chunk});
    };
    for (int i = 0; i < count + ahead + late; ++i) {
      add(forwards, Kind::forward, i);
      add(backwards, Kind::backward, i - ahead);
      if (pipeline.splits_backward()) add(backwards, Kind::weights, i - ahead - late);
    }
  }
  return schedules;
}

/// One stage while the greedy rule runs. Of each kind, a chunk begins its micro-batches in ascending order, because
/// their inputs are made in this order; so what has begun is a number.
struct GreedyStage {
  std::vector<std::array<int, 3>> begun;  // by chunk and kind
  int reserved = 0, limit = 0;            // (chunk, micro-batch) pairs that hold memory
  double free_at = 0;
};

/// The pairs for which a forward reserves memory. In the V shape a micro-batch that enters reserves for all chunks: its
/// later forwards, which lead to the backwards that release memory, then never wait for memory.
int reserves(const Pipeline& pipeline, int chunk) {
  if (pipeline.schedule != PipelineSchedule::v_shaped) return 1;
  return chunk == 0 ? pipeline.chunks : 0;
}

/// A stage that is free begins the best action that is ready: a backward, else a forward while its memory lasts, else a
/// weight gradient. Pieces take equal times. The rule always runs to the end: if no stage is busy, the forward that the
/// oldest incomplete micro-batch needs next, or one whose turn is before it, has its input and its memory.
class Greedy {
 public:
  explicit Greedy(const Pipeline& pipeline)
      : pipeline_(pipeline), ends_(pipeline), stages_(static_cast<std::size_t>(pipeline.stages)) {
    for (int s = 0; s < pipeline.stages; ++s) {
      stages_[static_cast<std::size_t>(s)].begun.resize(static_cast<std::size_t>(pipeline.chunks));
      stages_[static_cast<std::size_t>(s)].limit = pipeline.limit(s);
    }
    for (int r = 0; r < round_count(pipeline); ++r)
      rounds_.resize(static_cast<std::size_t>(round_of(pipeline, r).end), r);
  }

  Schedules run() {
    Schedules schedules(stages_.size());
    for (double now = 0; now < never;) {
      double next = never;
      for (int s = 0; s < pipeline_.stages; ++s) {
        GreedyStage& stage = stages_[static_cast<std::size_t>(s)];
        if (stage.free_at <= now) {
          const std::optional<Action> action = best_action(s, now);
          if (!action) continue;
          begin(*action, s, now);
          schedules[static_cast<std::size_t>(s)].push_back(*action);
        }
        next = std::min(next, stage.free_at);
      }
      now = next;
    }
    for ([[maybe_unused]] const GreedyStage& stage : stages_)
      for ([[maybe_unused]] const auto& begun : stage.begun) assert(begun.back() == pipeline_.micro_batches);
    return schedules;
  }

 private:
  std::optional<Action> best_action(int s, double now) const {
    if (const auto action = earliest_round(Kind::backward, s, now)) return action;
    const bool v_shaped = pipeline_.schedule == PipelineSchedule::v_shaped;
    if (const auto action = v_shaped ? deepest_forward(s, now) : forward_in_turn(s, now)) return action;
    return earliest_round(Kind::weights, s, now);
  }
  /// Of what is ready the earliest round, in it the deepest chunk.
  std::optional<Action> earliest_round(Kind kind, int s, double now) const {
    std::optional<Action> best;
    for (int c = pipeline_.chunks - 1; c >= 0; --c)
      if (const auto action = ready(kind, s, c, now); action && (!best || round(*action) < round(*best))) best = action;
    return best;
  }
  /// The chunk that is nearest to its backward.
  std::optional<Action> deepest_forward(int s, double now) const {
    for (int c = pipeline_.chunks - 1; c >= 0; --c)
      if (const auto action = ready(Kind::forward, s, c, now); action && fits(s, c)) return action;
    return std::nullopt;
  }
  /// A forward whose turn has not come waits, or it would take the memory of those before it.
  std::optional<Action> forward_in_turn(int s, double now) const {
    std::optional<Action> turn;
    for (int c = 0; c < pipeline_.chunks; ++c)
      if (const auto action = next(Kind::forward, s, c); action && (!turn || round(*action) < round(*turn)))
        turn = action;
    return turn && fits(s, turn->chunk) ? ready(Kind::forward, s, turn->chunk, now) : std::nullopt;
  }

  std::optional<Action> next(Kind kind, int s, int chunk) const {
    const GreedyStage& stage = stages_[static_cast<std::size_t>(s)];
    const int m = stage.begun[static_cast<std::size_t>(chunk)][static_cast<std::size_t>(kind)];
    return m < pipeline_.micro_batches ? std::optional(Action{kind, m, chunk}) : std::nullopt;
  }
  std::optional<Action> ready(Kind kind, int s, int chunk, double now) const {
    const auto action = next(kind, s, chunk);
    return action && ends_.ready(kind, pipeline_.piece(s, chunk), action->micro_batch) <= now ? action : std::nullopt;
  }
  bool fits(int s, int chunk) const {
    const GreedyStage& stage = stages_[static_cast<std::size_t>(s)];
    return stage.reserved + reserves(pipeline_, chunk) <= stage.limit;
  }
  int round(const Action& action) const { return rounds_[static_cast<std::size_t>(action.micro_batch)]; }

  void begin(const Action& action, int s, double now) {
    GreedyStage& stage = stages_[static_cast<std::size_t>(s)];
    const int piece = pipeline_.piece(s, action.chunk);
    stage.free_at = now + duration(pipeline_, {}, action.kind, piece);
    ends_.of(action.kind, piece, action.micro_batch) = stage.free_at;
    ++stage.begun[static_cast<std::size_t>(action.chunk)][static_cast<std::size_t>(action.kind)];
    if (action.kind == Kind::forward) stage.reserved += reserves(pipeline_, action.chunk);
    if (action.kind == Kind::weights) --stage.reserved;  // at its end, but nothing looks before
  }

  const Pipeline& pipeline_;
  Ends ends_;
  std::vector<GreedyStage> stages_;
  std::vector<int> rounds_;  // by micro-batch
};

}  // namespace

int Pipeline::limit(int stage) const {
  if (schedule == PipelineSchedule::v_shaped) return chunks * stages;
  return forwards_ahead(*this, schedule == PipelineSchedule::zero_bubble ? 0 : stage) + 1;
}

std::vector<std::vector<Action>> make_schedules(const Pipeline& pipeline) {
  const bool closed =
      !pipeline.splits_backward() || (pipeline.schedule == PipelineSchedule::zero_bubble && pipeline.chunks == 1);
  return closed ? closed_form(pipeline) : Greedy(pipeline).run();
}

int peak_in_flight(const std::vector<Action>& schedule) {
  const bool split =
      std::any_of(schedule.begin(), schedule.end(), [](const Action& a) { return a.kind == Kind::weights; });
  int in_flight = 0, peak = 0;
  for (const Action& action : schedule) {
    in_flight += action.kind == Kind::forward;
    in_flight -= action.kind == (split ? Kind::weights : Kind::backward);
    peak = std::max(peak, in_flight);
  }
  return peak;
}

Timeline timeline(const Pipeline& pipeline, const std::vector<std::vector<Action>>& schedules,
                  const PieceTimes& times) {
  Timeline result{std::vector<std::vector<Timeline::Span>>(schedules.size())};
  Ends ends(pipeline);
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t s = 0; s < schedules.size(); ++s) {
      std::vector<Timeline::Span>& spans = result.spans[s];
      for (; spans.size() < schedules[s].size(); moved = true) {
        const auto& [kind, micro_batch, chunk] = schedules[s][spans.size()];
        const int piece = pipeline.piece(static_cast<int>(s), chunk);
        const double ready = ends.ready(kind, piece, micro_batch);
        if (ready == never) break;
        const double begin = std::max(ready, spans.empty() ? 0 : spans.back().end);
        spans.push_back({begin, begin + duration(pipeline, times, kind, piece)});
        ends.of(kind, piece, micro_batch) = spans.back().end;
      }
    }
  }
  for ([[maybe_unused]] std::size_t s = 0; s < schedules.size(); ++s)
    assert(result.spans[s].size() == schedules[s].size());
  return result;
}

double Timeline::makespan() const {
  double last = 0;
  for (const auto& stage : spans)
    for (const Span& span : stage) last = std::max(last, span.end);
  return last;
}

double Timeline::bubble() const {
  double busy = 0;
  for (const auto& stage : spans)
    for (const Span& span : stage) busy += span.end - span.begin;
  return 1 - busy / (static_cast<double>(spans.size()) * makespan());
}

}  // namespace choir
