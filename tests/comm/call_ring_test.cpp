// The ring keeps the last calls, outlives a SIGKILL, and the rings of all ranks say who is behind.
#include "framework/comm/call_ring.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "framework/core/error.h"

namespace choir::tests {
namespace {

Call call_of(const char* verb, const char* axis, const char* label, std::uint64_t number, int first = 0, int ranks = 4,
             int stride = 1) {
  Call call{.number = number, .bytes = 1024, .first = first, .stride = stride, .ranks = ranks};
  std::strcpy(call.verb, verb);
  std::strcpy(call.axis, axis);
  std::strcpy(call.label, label);
  return call;
}

class CallRings : public ::testing::Test {
 protected:
  CallRings() {
    char pattern[] = "/tmp/choir-rings-XXXXXX";
    folder_ = mkdtemp(pattern);
  }
  ~CallRings() override { std::filesystem::remove_all(folder_); }

  std::string path(int rank) const { return folder_ + "/rank-" + std::to_string(rank) + ".calls"; }

  /// Gives `rank` a ring with calls #first to #last; the last one has not ended if `running`.
  void write_ring(int rank, const Call& pattern, std::uint64_t first, std::uint64_t last, bool running) const {
    CallRing ring(path(rank));
    for (std::uint64_t n = first; n <= last; ++n) {
      Call call = pattern;
      call.number = n;
      const auto sequence = ring.begin(call);
      if (n < last || !running) ring.end(sequence);
    }
  }
  std::string first_line() const {
    const std::string text = describe_call_rings(folder_);
    return text.substr(0, text.find('\n'));
  }

  std::string folder_;
};

TEST(CallRing, KeepsTheLast256) {
  CallRing ring;
  EXPECT_TRUE(ring.calls().empty());
  for (std::uint64_t n = 1; n <= 300; ++n) ring.end(ring.begin(call_of("barrier", "world", "x", n)));
  const std::vector<Call> calls = ring.calls();
  ASSERT_EQ(calls.size(), 256u);
  for (std::size_t i = 0; i < calls.size(); ++i) EXPECT_EQ(calls[i].sequence, 45 + i);
}

TEST(CallRing, SaysWhetherACallRuns) {
  CallRing ring;
  EXPECT_FALSE(ring.in_call());
  const auto sequence = ring.begin(call_of("barrier", "world", "x", 1));
  EXPECT_TRUE(ring.in_call());
  EXPECT_EQ(ring.last_activity(), ring.calls().back().started);
  EXPECT_EQ(ring.calls().back().ended, 0);
  ring.end(sequence);
  EXPECT_FALSE(ring.in_call());
  EXPECT_GE(ring.calls().back().ended, ring.calls().back().started);
}

TEST_F(CallRings, TheFileOutlivesSigkill) {
  const pid_t child = fork();
  if (child == 0) {
    CallRing ring(path(0));
    for (std::uint64_t n = 1; n <= 300; ++n) ring.end(ring.begin(call_of("all_gather", "tensor", "blocks.7", n)));
    ring.begin(call_of("all_reduce", "data", "gradients", 9));
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  std::string problem;
  const std::vector<Call> calls = read_call_ring(path(0), problem);
  ASSERT_EQ(problem, "");
  ASSERT_EQ(calls.size(), 256u);
  EXPECT_EQ(calls.front().sequence, 46u);
  EXPECT_EQ(calls.back().sequence, 301u);
  EXPECT_STREQ(calls.back().verb, "all_reduce");
  EXPECT_STREQ(calls.back().label, "gradients");
  EXPECT_EQ(calls.back().number, 9u);
  EXPECT_EQ(calls.back().ended, 0);
  EXPECT_GT(calls.front().ended, 0);
}

TEST_F(CallRings, AnUnwritableFolderIsAnError) {
  try {
    CallRing ring(folder_ + "/missing/rank-0.calls");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("missing/rank-0.calls"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos);
  }
}

TEST_F(CallRings, ABrokenFileIsAProblemNotACrash) {
  std::ofstream(path(0)) << "not a ring";
  std::string problem;
  EXPECT_TRUE(read_call_ring(path(0), problem).empty());
  EXPECT_NE(problem.find("is not a call ring"), std::string::npos);
  EXPECT_TRUE(read_call_ring(path(1), problem).empty());
  EXPECT_NE(problem.find("cannot open"), std::string::npos);
  std::ofstream(path(2)) << std::string(sizeof(RankState) + CallRing::length * sizeof(Call),
                                        '\xff');  // full of ones: texts without an end
  EXPECT_EQ(read_call_ring(path(2), problem).size(), 256u);
  EXPECT_NE(describe_call_rings(folder_).find("rank 0: "), std::string::npos);
}

TEST_F(CallRings, NamesTheRankThatIsBehind) {
  const Call call = call_of("all_gather", "tensor", "blocks.7.attention.out", 0);
  for (int rank = 0; rank < 3; ++rank) write_ring(rank, call, 100, 119, true);
  write_ring(3, call, 100, 118, true);
  EXPECT_EQ(first_line(), "rank 3 is at all_gather #118 of tensor (blocks.7.attention.out), the others at #119");
  const std::string text = describe_call_rings(folder_, 2);
  EXPECT_NE(text.find("\nrank 3:\n  all_gather #117 of tensor (blocks.7.attention.out), 1024 bytes, took "),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("all_gather #118 of tensor (blocks.7.attention.out), 1024 bytes, running for "),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find("#116"), std::string::npos);
}

TEST_F(CallRings, NamesTheRankThatLeftItsLastCall) {
  const Call call = call_of("all_reduce", "data", "gradients", 0, 0, 2);
  write_ring(0, call, 1, 5, false);
  write_ring(1, call, 1, 6, true);
  EXPECT_EQ(first_line(), "rank 0 is past all_reduce #5 of data (gradients), rank 1 at #6");
}

TEST_F(CallRings, NamesTheRankThatMadeNoCall) {
  write_ring(0, call_of("barrier", "world", "start", 0, 0, 3), 1, 1, true);
  write_ring(1, call_of("barrier", "world", "start", 0, 0, 3), 1, 1, true);
  { CallRing empty(path(2)); }
  EXPECT_EQ(first_line(), "rank 2 has made no call, the others are at barrier #1 of world (start)");
}

// A 2 x 2 mesh. Rank 3 stopped between two calls; rank 2 waits for it on tensor, ranks 0 and 1 wait for both on data.
// Ranks 0 and 1 have made the fewest calls: the sequence numbers alone would name them.
TEST_F(CallRings, FollowsWaitingRanksToTheOneThatDoesNotWait) {
  for (int rank = 0; rank < 4; ++rank) {
    const int first = rank / 2 * 2;
    CallRing ring(path(rank));
    for (std::uint64_t n = 1; n <= (rank < 2 ? 6u : 8u); ++n)
      ring.end(ring.begin(call_of("all_reduce", "tensor", "mlp", n, first, 2)));
    if (rank < 2) ring.begin(call_of("all_reduce", "data", "bucket 0", 1, rank, 2, 2));
    if (rank == 2) ring.begin(call_of("all_reduce", "tensor", "attention", 9, first, 2));
  }
  const std::string text = describe_call_rings(folder_);
  EXPECT_EQ(text.find("rank 3 is past all_reduce #8 of tensor (mlp), rank 2 at #9\nrank 0:\n"), 0u) << text;
}

// Two ranks in different calls, each waiting for the other: both are named.
TEST_F(CallRings, NamesBothOfACycle) {
  for (int rank = 0; rank < 2; ++rank) {
    CallRing ring(path(rank));
    ring.begin(rank == 0 ? call_of("all_reduce", "tensor", "norm", 1, 0, 2)
                         : call_of("barrier", "world", "end", 1, 0, 2));
  }
  const std::string text = describe_call_rings(folder_);
  EXPECT_EQ(text.find("rank 0 is at all_reduce #1 of tensor (norm), rank 1 at barrier #1 of world (end)\n"
                      "rank 1 is at barrier #1 of world (end), rank 0 at all_reduce #1 of tensor (norm)\n"),
            0u)
      << text;
}

// Three stages. Stage 1 has sent the output of micro-batch 1 and stopped; stage 0 waits for a gradient of it, stage 2
// for the output of micro-batch 2. The stages have made different numbers of exchanges.
TEST_F(CallRings, ComparesCallsOfPairsByTheirMessages) {
  const auto exchange = [&](const char* label, std::uint64_t number, std::vector<Call::Peer> peers) {
    Call call = call_of("exchange", "pipeline", label, number, 0, 3);
    std::copy(peers.begin(), peers.end(), call.peers);
    return call;
  };
  {
    CallRing ring(path(0));
    ring.end(ring.begin(exchange("forward 0 to stage 1", 1, {{1, 1, 0}})));
    ring.end(ring.begin(exchange("forward 1 to stage 1", 2, {{1, 2, 0}})));
    ring.begin(exchange("backward 0 from stage 1", 3, {{1, 2, 1}}));
  }
  {
    CallRing ring(path(1));
    ring.end(ring.begin(exchange("forward 0 from stage 0", 1, {{0, 0, 1}})));
    ring.end(ring.begin(exchange("forward 0 to stage 2, forward 1 from stage 0", 2, {{0, 0, 2}, {2, 1, 0}})));
    ring.end(ring.begin(exchange("forward 1 to stage 2", 3, {{2, 2, 0}})));
    ring.end(ring.begin(call_of("all_reduce", "tensor", "mlp", 50, 1, 1)));
  }
  {
    CallRing ring(path(2));
    ring.end(ring.begin(exchange("forward 0 from stage 1", 1, {{1, 0, 1}})));
    ring.end(ring.begin(exchange("forward 1 from stage 1", 2, {{1, 0, 2}})));
    ring.begin(exchange("forward 2 from stage 1", 3, {{1, 0, 3}}));
  }
  const std::string text = describe_call_rings(folder_);
  EXPECT_EQ(text.find("rank 1 is past all_reduce #50 of tensor (mlp), rank 0 at exchange #3 of pipeline (backward 0 "
                      "from stage 1)\nrank 0:\n"),
            0u)
      << text;
  EXPECT_NE(text.find(", with rank 1 (0 sent, 3 received), running for "), std::string::npos) << text;
}

TEST_F(CallRings, ListsTheRanksOfOneJobWithWhatTheyDo) {
  const auto write = [&](int rank, std::uint64_t job, int ranks) {
    CallRing ring(path(rank));
    ring.identify(job, rank, ranks, "a");
    ring.set(Phase::step, 7 + rank);
  };
  for (int rank = 0; rank < 4; ++rank) write(rank, 11, 4);  // an earlier run with more ranks
  for (int rank = 0; rank < 2; ++rank) write(rank, 12, 2);
  const std::string listed =
      "no rank is in a call\nrank 0:\n  on a, computing step 7\n  no calls\nrank 1:\n  on a, computing step 8\n  no "
      "calls\n";
  EXPECT_EQ(describe_call_rings(folder_), listed);
  EXPECT_EQ(describe_call_rings(folder_, 3, 12), listed);
  EXPECT_EQ(describe_call_rings(folder_, 3, 13), "");
  std::ofstream(path(3)) << "not a ring";
  EXPECT_EQ(describe_call_rings(folder_), listed);
  std::ofstream(path(1)) << "not a ring";
  EXPECT_NE(describe_call_rings(folder_).find("rank 1: "), std::string::npos);
}

TEST(CallRing, KnowsTheCallThatRunsOrTheLast) {
  CallRing ring;
  EXPECT_FALSE(ring.current());
  const auto first = ring.begin(call_of("barrier", "world", "x", 1));
  const auto second = ring.begin(call_of("barrier", "world", "x", 2));
  EXPECT_EQ(ring.current()->sequence, first);
  ring.end(first);
  EXPECT_EQ(ring.current()->sequence, second);
  ring.end(second);
  EXPECT_EQ(ring.current()->sequence, second);
  EXPECT_GT(ring.current()->ended, 0);
}

TEST_F(CallRings, SaysSoIfNobodyIsBehind) {
  EXPECT_EQ(first_line(), "no call rings (rank-N.calls) in " + folder_);
  write_ring(0, call_of("barrier", "world", "end", 0, 0, 2), 1, 2, false);
  write_ring(1, call_of("barrier", "world", "end", 0, 0, 2), 1, 2, false);
  EXPECT_EQ(first_line(), "no rank is in a call");
  write_ring(0, call_of("barrier", "world", "end", 0, 0, 2), 1, 2, true);
  EXPECT_EQ(first_line(), "no rank is behind: every rank that a running call needs has begun it");
}

}  // namespace
}  // namespace choir::tests
