#include "framework/parallel/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <limits>
#include <map>
#include <set>
#include <tuple>

namespace choir {

namespace {

using Kind = Action::Kind;
using Steps = std::vector<std::vector<StageStep>>;

/// The message that carries the result of an action of stage `stage`; nothing if no other stage reads the result.
std::optional<Transfer> message_of(const Pipeline& pipeline, int stage, const Action& action) {
  if (action.kind == Kind::weights) return std::nullopt;
  const int piece = pipeline.piece(stage, action.chunk), reader = piece + (action.kind == Kind::forward ? 1 : -1);
  if (reader < 0 || reader >= pipeline.pieces() || pipeline.stage_of(reader) == stage) return std::nullopt;
  return Transfer{action.kind, action.micro_batch, piece, pipeline.stage_of(reader)};
}

std::string describe(const Transfer& t) {
  return fmt::format("the {} of piece {}, micro-batch {}", t.kind == Kind::forward ? "output" : "gradient", t.piece,
                     t.micro_batch);
}

}  // namespace

std::vector<std::vector<StageStep>> with_transfers(const Pipeline& pipeline,
                                                   const std::vector<std::vector<Action>>& schedules) {
  struct Event {
    double time;
    bool acts;  // the action itself; else the message with its result. At the same time, messages come first
    int stage;
    std::size_t index;  // of the action in the schedule of the stage
    auto key() const { return std::tuple(time, acts, stage, index); }
  };
  const Timeline planned = timeline(pipeline, schedules);
  std::vector<Event> order;
  for (int s = 0; s < pipeline.stages; ++s) {
    const auto& spans = planned.spans[static_cast<std::size_t>(s)];
    for (std::size_t i = 0; i < spans.size(); ++i) {
      order.push_back({spans[i].begin, true, s, i});
      order.push_back({spans[i].end, false, s, i});
    }
  }
  std::sort(order.begin(), order.end(), [](const Event& a, const Event& b) { return a.key() < b.key(); });

  Steps steps(schedules.size());
  std::vector<StageStep> open(schedules.size());
  for (const Event& event : order) {
    const auto s = static_cast<std::size_t>(event.stage);
    const Action& action = schedules[s][event.index];
    if (event.acts) {
      open[s].action = action;
      steps[s].push_back(std::move(open[s]));
      open[s] = {};
    } else if (auto message = message_of(pipeline, event.stage, action)) {
      open[s].sends.push_back(*message);
      const auto peer = static_cast<std::size_t>(message->peer);
      message->peer = event.stage;
      open[peer].receives.push_back(*message);
    }
  }
  for (std::size_t s = 0; s < steps.size(); ++s)
    if (!open[s].sends.empty() || !open[s].receives.empty()) steps[s].push_back(std::move(open[s]));
  return steps;
}

std::string find_deadlock(const std::vector<std::vector<StageStep>>& steps) {
  using Message = std::tuple<std::size_t, std::size_t, Kind, int, int>;  // from, to, kind, micro-batch, piece
  struct Waiting {
    bool to_send;
    Transfer transfer;
  };
  std::set<Message> sent, received;  // in the steps to which the stages have come
  std::vector<std::size_t> at(steps.size());
  const auto sends = [](std::size_t s, const Transfer& t) {
    return Message{s, t.peer, t.kind, t.micro_batch, t.piece};
  };
  const auto receives = [](std::size_t s, const Transfer& t) {
    return Message{t.peer, s, t.kind, t.micro_batch, t.piece};
  };
  const auto come = [&](std::size_t s) {
    if (at[s] == steps[s].size()) return;
    for (const Transfer& t : steps[s][at[s]].sends) sent.insert(sends(s, t));
    for (const Transfer& t : steps[s][at[s]].receives) received.insert(receives(s, t));
  };
  const auto waiting = [&](std::size_t s) -> std::optional<Waiting> {
    for (const Transfer& t : steps[s][at[s]].sends)
      if (!received.contains(sends(s, t))) return Waiting{true, t};
    for (const Transfer& t : steps[s][at[s]].receives)
      if (!sent.contains(receives(s, t))) return Waiting{false, t};
    return std::nullopt;
  };
  for (std::size_t s = 0; s < steps.size(); ++s) come(s);
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t s = 0; s < steps.size(); ++s)
      for (; at[s] < steps[s].size() && !waiting(s); moved = true) {
        ++at[s];
        come(s);
      }
  }
  std::string found;
  for (std::size_t s = 0; s < steps.size(); ++s) {
    if (at[s] == steps[s].size()) continue;
    const auto [to_send, transfer] = *waiting(s);
    found += fmt::format("{}stage {}, step {}: waits for ever for stage {} to {} {}", found.empty() ? "" : "\n", s,
                         at[s], transfer.peer, to_send ? "receive" : "send", describe(transfer));
  }
  return found;
}

std::string find_disorder(const std::vector<std::vector<StageStep>>& steps) {
  struct Ends {
    std::vector<Transfer> sent, received;
  };
  std::map<std::pair<int, int>, Ends> messages;  // by sender and receiver; `peer` is the receiver at both ends
  for (int s = 0; s < static_cast<int>(steps.size()); ++s)
    for (const StageStep& step : steps[static_cast<std::size_t>(s)]) {
      for (const Transfer& t : step.sends) messages[{s, t.peer}].sent.push_back(t);
      for (const Transfer& t : step.receives)
        messages[{t.peer, s}].received.push_back({t.kind, t.micro_batch, t.piece, s});
    }
  const auto describe_at = [](const std::vector<Transfer>& all, std::size_t i) {
    return i < all.size() ? describe(all[i]) : "nothing";
  };
  for (const auto& [stages, ends] : messages) {
    const auto& [sent, received] = ends;
    for (std::size_t i = 0; i < std::max(sent.size(), received.size()); ++i)
      if (i >= sent.size() || i >= received.size() || sent[i] != received[i])
        return fmt::format("message {} from stage {} to stage {}: {} is sent, {} is received", i, stages.first,
                           stages.second, describe_at(sent, i), describe_at(received, i));
  }
  return "";
}

std::vector<Slice> cut_by_cost(const std::vector<double>& costs, int pieces) {
  const std::size_t parts = costs.size(), count = static_cast<std::size_t>(pieces);
  assert(1 <= pieces && count <= parts);
  // The least possible largest cost of the parts [begin, parts) in n stretches, of which the first ends at `end`. Every
  // stretch is summed from its begin, so that equal stretches have equal costs.
  //   best[n][begin] = min over end of max(costs[begin] + ... + costs[end - 1], best[n - 1][end])
  constexpr double never = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(count + 1, std::vector<double>(parts + 1, never));
  best[0][parts] = 0;
  for (std::size_t n = 1; n <= count; ++n)
    for (std::size_t begin = 0; begin + n <= parts; ++begin) {
      double cost = 0;
      for (std::size_t end = begin + 1; end + n - 1 <= parts; ++end) {
        cost += costs[end - 1];
        best[n][begin] = std::min(best[n][begin], std::max(cost, best[n - 1][end]));
      }
    }
  std::vector<Slice> slices;
  for (std::size_t n = count, begin = 0, end = 0; n > 0; --n, begin = end) {
    double cost = 0;
    do cost += costs[end++];
    while (std::max(cost, best[n - 1][end]) > best[count][0]);
    slices.push_back({static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)});
  }
  return slices;
}

}  // namespace choir
