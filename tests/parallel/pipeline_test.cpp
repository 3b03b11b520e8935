// Messages between pipeline stages: no pipeline waits for ever and both ends agree on the order, while two simpler
// passes fail, which the checkers find. Cuts: the best of all cuts.
#include "framework/parallel/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <utility>

#include "tests/parallel/pipelines.h"

namespace choir::tests {
namespace {

using Kind = Action::Kind;
using Steps = std::vector<std::vector<StageStep>>;
using Key = std::tuple<Kind, int, int>;  // kind, micro-batch, the piece that made it

Key key(const Transfer& t) { return {t.kind, t.micro_batch, t.piece}; }

/// What the action reads of its neighbour, or gives to it, if the neighbouring piece lies on another stage.
std::optional<Transfer> moved(const Pipeline& p, int stage, const Action& action, bool reads) {
  const int piece = p.piece(stage, action.chunk), towards = action.kind == Kind::forward ? 1 : -1;
  const int other = reads ? piece - towards : piece + towards;
  if (action.kind == Kind::weights || other < 0 || other >= p.pieces() || p.stage_of(other) == stage)
    return std::nullopt;
  return Transfer{action.kind, action.micro_batch, reads ? other : piece, p.stage_of(other)};
}

/// A wrong pass: a stage receives in the step of the action that reads the message, and sends in the next step.
Steps received_when_needed(const Pipeline& p) {
  Steps steps;
  for (const std::vector<Action>& schedule : make_schedules(p)) {
    const int stage = static_cast<int>(steps.size());
    std::vector<StageStep>& here = steps.emplace_back(1);
    for (const Action& action : schedule) {
      if (const auto t = moved(p, stage, action, true)) here.back().receives.push_back(*t);
      here.back().action = action;
      here.emplace_back();
      if (const auto t = moved(p, stage, action, false)) here.back().sends.push_back(*t);
    }
  }
  return steps;
}

/// A wrong pass: the same, but before a message a stage receives all that its peer sends before it.
Steps received_in_the_senders_order(const Pipeline& p) {
  Steps steps = received_when_needed(p);
  std::map<std::pair<int, int>, std::vector<Transfer>> sent;  // by sender and receiver
  for (int s = 0; s < p.stages; ++s)
    for (const StageStep& step : steps[static_cast<std::size_t>(s)])
      for (const Transfer& t : step.sends) sent[{s, t.peer}].push_back({t.kind, t.micro_batch, t.piece, s});
  for (int s = 0; s < p.stages; ++s) {
    std::set<Key> received;
    for (StageStep& step : steps[static_cast<std::size_t>(s)]) {
      const std::vector<Transfer> needed = std::exchange(step.receives, {});
      for (const Transfer& need : needed)
        for (const Transfer& t : sent[{need.peer, s}]) {
          if (received.contains(key(need))) break;
          if (received.insert(key(t)).second) step.receives.push_back(t);
        }
    }
  }
  return steps;
}

TEST(Pipeline, EachActionFindsWhatItReadsAndEachMessageIsSentAndReceivedOnce) {
  for_each_pipeline([](const Pipeline& p) {
    const auto schedules = make_schedules(p);
    const Steps steps = with_transfers(p, schedules);
    ASSERT_EQ(steps.size(), schedules.size());
    std::map<Key, std::pair<int, int>> sent, received;  // the stages: from, to
    for (int s = 0; s < p.stages; ++s) {
      std::vector<Action> actions;
      std::set<Key> made, here;
      for (const StageStep& step : steps[static_cast<std::size_t>(s)]) {
        ASSERT_TRUE(step.action || &step == &steps[static_cast<std::size_t>(s)].back());
        ASSERT_TRUE(step.action || !step.sends.empty() || !step.receives.empty()) << "an empty step";
        for (const Transfer& t : step.sends) {
          ASSERT_TRUE(made.contains(key(t))) << "a message before its action";
          ASSERT_TRUE(sent.insert({key(t), {s, t.peer}}).second) << "sent twice";
        }
        for (const Transfer& t : step.receives) {
          ASSERT_TRUE(received.insert({key(t), {t.peer, s}}).second) << "received twice";
          here.insert(key(t));
        }
        if (!step.action) continue;
        const auto need = moved(p, s, *step.action, true);
        ASSERT_TRUE(!need || here.erase(key(*need)) == 1) << "not received";
        if (const auto gift = moved(p, s, *step.action, false)) made.insert(key(*gift));
        actions.push_back(*step.action);
      }
      ASSERT_EQ(actions, schedules[static_cast<std::size_t>(s)]);
      ASSERT_TRUE(here.empty()) << "received, but not read";
    }
    ASSERT_EQ(sent, received);
    // Between neighbouring pieces on different stages, once there and once back. The V shape's turning point has none.
    int boundaries = 0;
    for (int piece = 0; piece + 1 < p.pieces(); ++piece) boundaries += p.stage_of(piece) != p.stage_of(piece + 1);
    ASSERT_EQ(static_cast<int>(sent.size()), 2 * p.micro_batches * boundaries);
  });
}

TEST(Pipeline, NoStageWaitsForEverAndBothEndsAgreeOnTheOrder) {
  for_each_pipeline([](const Pipeline& p) {
    const Steps steps = with_transfers(p, make_schedules(p));
    ASSERT_EQ(find_deadlock(steps), "");
    ASSERT_EQ(find_disorder(steps), "");
  });
}

TEST(Pipeline, OneStageHasNoMessages) {
  for (const PipelineSchedule schedule : {PipelineSchedule::interleaved, PipelineSchedule::v_shaped}) {
    const Pipeline p{schedule, 1, 2, 3};
    const Steps steps = with_transfers(p, make_schedules(p));
    for (const StageStep& step : steps[0]) {
      EXPECT_TRUE(step.sends.empty() && step.receives.empty());
      EXPECT_TRUE(step.action);
    }
  }
}

TEST(Pipeline, TheStepsOfTwoStagesAreAsDrawn) {
  // stage 0:  F0 | send F0, F1         | receive B0, send F1, B0 | receive B1, B1
  // stage 1:       receive F0, F0 | B0 | send B0, receive F1, F1 | B1 | send B1
  const Pipeline p{.stages = 2, .micro_batches = 2};
  const Steps steps = with_transfers(p, make_schedules(p));
  const auto output = [](int m, int peer) { return Transfer{Kind::forward, m, 0, peer}; };
  const auto gradient = [](int m, int peer) { return Transfer{Kind::backward, m, 1, peer}; };
  const auto act = [](Kind kind, int m) { return Action{kind, m, 0}; };
  EXPECT_EQ(steps[0], (std::vector<StageStep>{
                          {.action = act(Kind::forward, 0)},
                          {.sends = {output(0, 1)}, .action = act(Kind::forward, 1)},
                          {.sends = {output(1, 1)}, .receives = {gradient(0, 1)}, .action = act(Kind::backward, 0)},
                          {.receives = {gradient(1, 1)}, .action = act(Kind::backward, 1)}}));
  EXPECT_EQ(steps[1], (std::vector<StageStep>{{.receives = {output(0, 0)}, .action = act(Kind::forward, 0)},
                                              {.receives = {output(1, 0)}, .action = act(Kind::backward, 0)},
                                              {.sends = {gradient(0, 0)}, .action = act(Kind::forward, 1)},
                                              {.action = act(Kind::backward, 1)},
                                              {.sends = {gradient(1, 0)}}}));
}

TEST(Pipeline, ReceivingWhenNeededWaitsForEverOrMixesUpMessages) {
  int pipelines = 0, stuck = 0, mixed = 0;
  for_each_pipeline([&](const Pipeline& p) {
    const Steps steps = received_when_needed(p);
    ++pipelines;
    stuck += !find_deadlock(steps).empty();
    mixed += !find_disorder(steps).empty();
  });
  EXPECT_GT(stuck, pipelines / 10);
  EXPECT_GT(mixed, 0);
}

TEST(Pipeline, ReceivingInTheSendersOrderWaitsForEver) {
  int pipelines = 0, stuck = 0;
  for_each_pipeline([&](const Pipeline& p) {
    const Steps steps = received_in_the_senders_order(p);
    ++pipelines;
    stuck += !find_deadlock(steps).empty();
    ASSERT_EQ(find_disorder(steps), "");
  });
  EXPECT_GT(stuck, pipelines / 10);
}

TEST(Pipeline, ADeadlockIsReportedWithWhatEachStageWaitsFor) {
  // Both stages send first and receive in a later step.
  const Transfer output{Kind::forward, 2, 0, 1}, gradient{Kind::backward, 1, 1, 0};
  const auto at = [](Transfer t, int peer) {
    t.peer = peer;
    return t;
  };
  const Steps steps = {{{.sends = {output}}, {.receives = {at(gradient, 1)}}},
                       {{.sends = {gradient}}, {.receives = {at(output, 0)}}}};
  EXPECT_EQ(find_deadlock(steps),
            "stage 0, step 0: waits for ever for stage 1 to receive the output of piece 0, micro-batch 2\n"
            "stage 1, step 0: waits for ever for stage 0 to receive the gradient of piece 1, micro-batch 1");
  const Steps together = {{{.sends = {output}, .receives = {at(gradient, 1)}}},
                          {{.sends = {gradient}, .receives = {at(output, 0)}}}};
  EXPECT_EQ(find_deadlock(together), "");
  EXPECT_EQ(find_deadlock({{{.receives = {at(gradient, 1)}}}, {}}),
            "stage 0, step 0: waits for ever for stage 1 to send the gradient of piece 1, micro-batch 1");
}

TEST(Pipeline, ADisorderIsReportedWithTheFirstMessageThatDiffers) {
  const auto output = [](int m, int peer) { return Transfer{Kind::forward, m, 0, peer}; };
  const Steps steps = {{{.sends = {output(0, 1), output(1, 1), output(2, 1)}}},
                       {{.receives = {output(0, 0), output(2, 0), output(1, 0)}}}};
  EXPECT_EQ(find_deadlock(steps), "") << "they meet, but by order the wrong ones would match";
  EXPECT_EQ(find_disorder(steps),
            "message 1 from stage 0 to stage 1: the output of piece 0, micro-batch 1 is sent, the output of piece 0, "
            "micro-batch 2 is received");
  EXPECT_EQ(find_disorder({{{.sends = {output(0, 1)}}}, {}}),
            "message 0 from stage 0 to stage 1: the output of piece 0, micro-batch 0 is sent, nothing is received");
}

double largest_cost(const std::vector<double>& costs, const std::vector<std::int64_t>& ends) {
  double largest = 0;
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    largest = std::max(largest, std::accumulate(costs.begin() + begin, costs.begin() + end, 0.0));
    begin = end;
  }
  return largest;
}

/// The first best of all cuts in lexicographic order.
std::vector<std::int64_t> brute_force(const std::vector<double>& costs, int pieces) {
  const auto parts = static_cast<std::int64_t>(costs.size());
  std::vector<std::int64_t> ends, best;
  const auto visit = [&](const auto& self) -> void {
    const auto left = pieces - static_cast<int>(ends.size());
    if (left == 1) {
      ends.push_back(parts);
      if (best.empty() || largest_cost(costs, ends) < largest_cost(costs, best)) best = ends;
      ends.pop_back();
      return;
    }
    for (std::int64_t end = (ends.empty() ? 0 : ends.back()) + 1; end + left - 1 <= parts; ++end) {
      ends.push_back(end);
      self(self);
      ends.pop_back();
    }
  };
  visit(visit);
  return best;
}

TEST(CutByCost, IsTheEarliestBestOfAllCuts) {
  std::mt19937 random(7);
  const auto with_ties = [&] { return static_cast<double>(random() % 4); };
  const auto without_ties = [&] { return std::uniform_real_distribution(0.0, 1.0)(random); };
  for (int parts = 1; parts <= 10; ++parts)
    for (int pieces = 1; pieces <= parts; ++pieces)
      for (int repeat = 0; repeat < 20; ++repeat) {
        std::vector<double> costs(static_cast<std::size_t>(parts));
        for (double& cost : costs) cost = repeat % 2 ? with_ties() : without_ties();
        const std::vector<Slice> slices = cut_by_cost(costs, pieces);
        std::vector<std::int64_t> ends;
        std::int64_t begin = 0;
        for (const Slice& slice : slices) {
          ASSERT_EQ(slice.begin, begin);
          ASSERT_LT(slice.begin, slice.end) << "an empty stretch";
          ends.push_back(begin = slice.end);
        }
        ASSERT_EQ(ends, brute_force(costs, pieces)) << ::testing::PrintToString(costs) << " in " << pieces;
      }
}

TEST(CutByCost, EqualCostsAreEqualWhereverTheyLie) {
  // 0.1 + 0.1 + 0.1 is not 0.3: sums that begin elsewhere would make equal stretches differ.
  EXPECT_EQ(cut_by_cost(std::vector(12, 0.1), 4), (std::vector<Slice>{{0, 3}, {3, 6}, {6, 9}, {9, 12}}));
  EXPECT_EQ(cut_by_cost(std::vector(7, 0.1), 3), (std::vector<Slice>{{0, 1}, {1, 4}, {4, 7}}));
}

TEST(CutByCost, AHeadThatCostsAsMuchAsTwoBlocksGetsOneBlock) {
  // Embedding, eight blocks, head.
  EXPECT_EQ(cut_by_cost({0.1, 1, 1, 1, 1, 1, 1, 1, 1, 2}, 4), (std::vector<Slice>{{0, 2}, {2, 5}, {5, 8}, {8, 10}}));
}

}  // namespace
}  // namespace choir::tests
