// The rules of heartbeats, on a clock and a network of the test: 4 hosts with 4 ranks each.
#include "framework/comm/heartbeat_rules.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>

namespace choir::tests {
namespace {

using Verdict = HeartbeatRules::Verdict;

constexpr int num_hosts = 4, ranks_each = 4, num_ranks = num_hosts * ranks_each;
constexpr double silence = 10, period = 1;

int host_of(int rank) { return rank / ranks_each; }
std::string host_name(int host) { return "host" + std::to_string(host); }

/// All ranks of a job. A rank ticks once a period, at its own time within it.
class Job {
 public:
  explicit Job(double silence_limit = silence) {
    std::vector<HeartbeatRules::Host> hosts;
    for (int h = 0; h < num_hosts; ++h) {
      hosts.push_back({.name = host_name(h), .ranks = {}});
      for (int i = 0; i < ranks_each; ++i) hosts.back().ranks.push_back(h * ranks_each + i);
    }
    for (int rank = 0; rank < num_ranks; ++rank) {
      ranks_.emplace_back(hosts, rank,
                          HeartbeatRules::Limits{.silence = silence_limit, .period = period, .patience = 3}, 42);
      runs_.push_back(true);
    }
  }

  HeartbeatRules& rank(int r) { return ranks_[static_cast<std::size_t>(r)]; }
  bool runs(int r) const { return runs_[static_cast<std::size_t>(r)]; }
  void stop(int r) { runs_[static_cast<std::size_t>(r)] = false; }
  /// Which datagrams arrive.
  std::function<bool(int from, int to)> passes = [](int, int) { return true; };

  /// Runs until `time`, or until all ranks that run know that the job ends.
  void run_until(double time) {
    while (now < time) {
      now += period / 10;
      ++tenth_;
      for (int r = 0; r < num_ranks; ++r) {
        if (!runs(r)) continue;
        if (tenth_ % 10 == r * 7 % 10 || verdicts[r] != Verdict::go_on) {
          Beat beat{.step = 7, .phase = Phase::step, .in_call = true};
          std::strcpy(beat.call, ("all_reduce #" + std::to_string(r)).c_str());
          rank(r).tick(beat, now, sender());
          deliver();
        }
      }
      bool all_know = true;
      for (int r = 0; r < num_ranks; ++r) {
        if (!runs(r)) continue;
        const Verdict verdict = rank(r).verdict(now);
        if (verdict == Verdict::speak && verdicts[r] != Verdict::speak) words[r] = rank(r).describe(now);
        if (verdict == Verdict::go_on) all_know = false;
        verdicts[r] = verdict;
      }
      if (all_know) return;
    }
  }
  HeartbeatRules::Send sender() {
    return [this](const Datagram& letter) { letters_.push_back(letter); };
  }
  void deliver() {
    for (; !letters_.empty(); letters_.pop_front()) {
      const Datagram letter = letters_.front();
      ++sent[letter.from];
      if (runs(letter.to) && passes(letter.from, letter.to)) rank(letter.to).receive(letter, now, sender());
    }
  }

  double now = 0;
  std::map<int, Verdict> verdicts;
  std::map<int, std::string> words;  // of those that speak
  std::map<int, int> sent;           // datagrams, by rank

 private:
  std::vector<HeartbeatRules> ranks_;
  std::vector<bool> runs_;
  std::deque<Datagram> letters_;
  int tenth_ = 0;
};

bool names(const std::string& words, int rank) {
  return words.find("rank " + std::to_string(rank) + " on " + host_name(host_of(rank)) + ": not heard for ") !=
         std::string::npos;
}

TEST(HeartbeatRules, AHealthyJobGoesOnWithFewDatagrams) {
  Job job;
  job.run_until(100);
  for (int r = 0; r < num_ranks; ++r) {
    EXPECT_EQ(job.verdicts[r], Verdict::go_on) << r;
    EXPECT_TRUE(job.rank(r).hears_hosts(job.now));
    const int answers = r == 0 ? num_hosts - 1 : 0, reports = r != 0 && r % ranks_each == 0 ? 1 : 0;
    EXPECT_NEAR(job.sent[r], 100 * (ranks_each - 1 + answers + reports), 30) << r;
  }
}

TEST(HeartbeatRules, ASilentRankIsNamedOnceWhicheverItIs) {
  for (int silent = 0; silent < num_ranks; ++silent) {
    Job job;
    job.run_until(20);
    job.stop(silent);
    job.run_until(60);
    EXPECT_GT(job.now, 20 + silence - period) << silent;
    EXPECT_LT(job.now, 20 + silence + 2 * period) << silent;
    ASSERT_EQ(job.words.size(), 1u) << silent;
    const std::string& words = job.words.begin()->second;
    EXPECT_EQ(job.words.begin()->first, silent == 0 ? 1 : 0);
    for (int r = 0; r < num_ranks; ++r) EXPECT_EQ(names(words, r), r == silent) << silent << "\n" << words;
    EXPECT_NE(words.find("computing step 7, in all_reduce #" + std::to_string(silent) + " for "), std::string::npos)
        << words;
    EXPECT_NE(words.find("1 rank has not been heard for 10 s (train.heartbeat)"), std::string::npos) << words;
  }
}

TEST(HeartbeatRules, AHostThatIsCutOffEndsOnBothSides) {
  for (int cut = 0; cut < num_hosts; ++cut) {
    Job job;
    job.run_until(20);
    job.passes = [cut](int from, int to) { return (host_of(from) == cut) == (host_of(to) == cut); };
    job.run_until(60);
    EXPECT_LT(job.now, 20 + silence + 6 * period) << cut;
    ASSERT_EQ(job.words.size(), 2u) << cut;
    for (const auto& [speaker, words] : job.words) {
      EXPECT_EQ(speaker % ranks_each, 0);
      const bool on_the_first_side = speaker == 0;
      for (int r = 0; r < num_ranks; ++r) {
        const bool other_side = (host_of(r) == cut) != (host_of(speaker) == cut);
        const bool is_heard = on_the_first_side || host_of(r) == 0;  // the others hear the first host only
        EXPECT_TRUE(!is_heard || names(words, r) == other_side) << cut << " " << r << "\n" << words;
      }
    }
    EXPECT_TRUE(job.words.contains(0));
    EXPECT_TRUE(job.words.contains(cut == 0 ? ranks_each : cut * ranks_each));
  }
}

TEST(HeartbeatRules, AWholeHostThatStopsIsNamed) {
  for (int stopped = 0; stopped < num_hosts; ++stopped) {
    Job job;
    job.run_until(20);
    for (int i = 0; i < ranks_each; ++i) job.stop(stopped * ranks_each + i);
    job.run_until(60);
    EXPECT_LT(job.now, 20 + silence + 6 * period);
    ASSERT_EQ(job.words.size(), 1u) << stopped;
    const std::string& words = job.words.begin()->second;
    for (int r = 0; r < num_ranks; ++r) EXPECT_EQ(names(words, r), host_of(r) == stopped) << words;
  }
}

TEST(HeartbeatRules, WhatARankNoticesIsSaidByTheFirstThatRuns) {
  for (const int noticed : {0, 3, 9}) {
    Job job;
    job.run_until(20);
    job.rank(noticed).complain("a fault");
    job.run_until(60);
    ASSERT_EQ(job.words.size(), 1u) << noticed;
    EXPECT_EQ(job.words.begin()->first, 0);
    EXPECT_EQ(job.words[0].find("a fault\n  noticed by rank " + std::to_string(noticed) + "\n"), 0u) << job.words[0];
    EXPECT_LT(job.now, 20 + 3 * period);
  }
}

TEST(HeartbeatRules, ARankThatHasMissedBeatsIsNamedWithAnyFault) {
  Job job;
  job.run_until(20);
  job.stop(5);
  job.run_until(26);
  job.rank(2).complain("a fault");
  job.run_until(60);
  ASSERT_EQ(job.words.size(), 1u);
  for (int r = 0; r < num_ranks; ++r) EXPECT_EQ(names(job.words[0], r), r == 5) << job.words[0];
}

TEST(HeartbeatRules, RanksMayEndOneAfterTheOther) {
  for (const bool first_to_last : {true, false}) {
    Job job;
    job.run_until(20);
    for (int i = 0; i < num_ranks; ++i) {
      const int r = first_to_last ? i : num_ranks - 1 - i;
      job.rank(r).leave(job.now, job.sender());
      job.deliver();
      job.stop(r);
      job.run_until(job.now + 2 * silence);
    }
    EXPECT_TRUE(job.words.empty()) << job.words.begin()->second;
  }
}

TEST(HeartbeatRules, HostsThatHaveNeverBeenHeardAreNotMissed) {
  Job job;
  job.passes = [](int from, int to) { return host_of(from) == host_of(to); };
  job.run_until(100);
  EXPECT_TRUE(job.words.empty());
  EXPECT_FALSE(job.rank(0).hears_hosts(job.now));
  EXPECT_FALSE(job.rank(4).hears_hosts(job.now));
  EXPECT_TRUE(job.rank(5).hears_hosts(job.now)) << "it need not";
}

TEST(HeartbeatRules, WithoutALimitNobodyIsSilent) {
  Job job(0);
  job.run_until(20);
  job.stop(0);
  job.stop(6);
  job.run_until(100);
  EXPECT_TRUE(job.words.empty());
  job.rank(9).complain("a fault");
  job.run_until(120);
  ASSERT_EQ(job.words.size(), 1u);
  EXPECT_EQ(job.words.begin()->first, 1);
}

}  // namespace
}  // namespace choir::tests
