// The watchdog ends a silent process, and only a silent one. It ends the process it is in: each case is a forked child.
#include "framework/comm/watchdog.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>

#include "framework/comm/counting_communicator.h"

namespace choir::tests {
namespace {

using std::chrono::milliseconds;

class Watchdogs : public ::testing::Test {
 protected:
  Watchdogs() {
    char pattern[] = "/tmp/choir-watchdog-XXXXXX";
    folder_ = mkdtemp(pattern);
  }
  ~Watchdogs() override { std::filesystem::remove_all(folder_); }

  struct Outcome {
    int exit_code;
    std::string words;
    double seconds;
  };

  /// Runs `body` in `ranks` processes, each with a ring and a watchdog of 0.2 s. The outcome is rank 0's, which exits
  /// with 42 if it gets to the end; the words are those of all.
  Outcome run(const std::function<void(CallRing&, Watchdog&)>& body, int ranks = 1) const {
    int ends[2] = {};
    EXPECT_EQ(pipe(ends), 0);
    const auto begin = std::chrono::steady_clock::now();
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      int rank = 0;
      for (int other = 1; other < ranks && rank == 0; ++other)  // before a thread starts: it would not survive a fork
        if (fork() == 0) rank = other;
      {
        CallRing ring(folder_ + "/rank-" + std::to_string(rank) + ".calls");
        Watchdog watchdog(ring, folder_, 0.2, {});
        watchdog.start();
        body(ring, watchdog);
      }
      _exit(42);
    }
    close(ends[1]);
    Outcome outcome;
    char buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
      outcome.words.append(buffer, static_cast<std::size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return outcome;
  }

  static Call call() {
    Call call{.number = 7, .bytes = 8, .ranks = 2};
    std::strcpy(call.verb, "all_reduce");
    std::strcpy(call.axis, "data");
    std::strcpy(call.label, "gradients");
    return call;
  }

  std::string folder_;
};

TEST_F(Watchdogs, EndsAProcessThatHangsInACall) {
  const Outcome outcome = run([](CallRing& ring, Watchdog&) {
    ring.begin(call());
    std::this_thread::sleep_for(milliseconds(20'000));
  });
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.words.find("all_reduce #7 of data (gradients), 8 bytes, running for"), std::string::npos)
      << outcome.words;
  EXPECT_NE(outcome.words.find("for 0.2 s (train.timeout)"), std::string::npos) << outcome.words;
  EXPECT_LT(outcome.seconds, 10);  // 0.2 s, 2 s of grace, and a busy machine
}

TEST_F(Watchdogs, EndsAProcessThatHangsInAStep) {
  const Outcome outcome = run([](CallRing&, Watchdog& watchdog) {
    watchdog.begin_step();
    std::this_thread::sleep_for(milliseconds(20'000));
  });
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.words.find("no rank is in a call"), std::string::npos) << outcome.words;
}

TEST_F(Watchdogs, LeavesAnIdleProcessAlone) {
  const Outcome outcome = run([](CallRing& ring, Watchdog& watchdog) {
    watchdog.begin_step();
    ring.end(ring.begin(call()));
    watchdog.end_step();
    std::this_thread::sleep_for(milliseconds(700));
  });
  EXPECT_EQ(outcome.exit_code, 42);
  EXPECT_EQ(outcome.words, "");
  EXPECT_LT(outcome.seconds, 5);  // and stops at once in the end
}

TEST_F(Watchdogs, LeavesABusyProcessAlone) {
  const Outcome outcome = run([](CallRing& ring, Watchdog& watchdog) {
    watchdog.begin_step();
    for (int i = 0; i < 35; ++i) {
      ring.end(ring.begin(call()));
      std::this_thread::sleep_for(milliseconds(20));
    }
  });
  EXPECT_EQ(outcome.exit_code, 42);
}

TEST_F(Watchdogs, StopsWhenTold) {
  const Outcome outcome = run([](CallRing& ring, Watchdog& watchdog) {
    ring.begin(call());
    watchdog.stop();
    std::this_thread::sleep_for(milliseconds(700));
    watchdog.start();  // and can be started again: time counts from now
    std::this_thread::sleep_for(milliseconds(50));
  });
  EXPECT_EQ(outcome.exit_code, 42);
}

/// A library that has something to say, after a while.
class FailingCommunicator : public CountingCommunicator {
 public:
  using CountingCommunicator::CountingCommunicator;
  std::string problem() override { return ++asked_ > 3 ? "NCCL: a rank died" : ""; }
  void abort() override { EXPECT_EQ(write(STDERR_FILENO, "aborted\n", 8), 8); }

 private:
  int asked_ = 0;
};

TEST_F(Watchdogs, EndsAProcessWhoseCommunicatorReportsAProblem) {
  const Outcome outcome = run([this](CallRing& ring, Watchdog&) {
    Device device(CountOnly{}, 1);
    FailingCommunicator communicator(Group{.axis = "data", .size = 2}, device, ring);
    Watchdog watchdog(ring, folder_, 2, {&communicator});
    watchdog.start();
    std::this_thread::sleep_for(milliseconds(20'000));
  });
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.words.find("NCCL: a rank died\n"), std::string::npos) << outcome.words;
  EXPECT_LT(outcome.words.find("ending the job"), outcome.words.find("aborted")) << outcome.words;
}

/// A GPU that has ended all calls, which only who asks it learns.
class FinishedCommunicator : public CountingCommunicator {
 public:
  FinishedCommunicator(Device& device, CallRing& ring, std::uint64_t running)
      : CountingCommunicator(Group{.axis = "data", .size = 2}, device, ring), calls_(ring) {
    calls_.add(running, [] { return true; });
  }
  std::string problem() override {
    calls_.note_ends();
    return {};
  }

 private:
  PendingCalls calls_;
};

TEST_F(Watchdogs, LeavesAProcessAloneWhoseGpuHasEndedItsCalls) {
  const Outcome outcome = run([this](CallRing& ring, Watchdog& without) {
    without.stop();
    Device device(CountOnly{}, 1);
    FinishedCommunicator communicator(device, ring, ring.begin(call()));
    Watchdog watchdog(ring, folder_, 0.2, {&communicator});
    watchdog.start();
    std::this_thread::sleep_for(milliseconds(700));
  });
  EXPECT_EQ(outcome.exit_code, 42) << outcome.words;
}

/// A library whose abort never returns.
class StuckCommunicator : public FailingCommunicator {
 public:
  using FailingCommunicator::FailingCommunicator;
  void abort() override {
    for (;;) pause();
  }
};

TEST_F(Watchdogs, EndsAProcessWhoseLibraryDoesNotReturnFromItsAbort) {
  const Outcome outcome = run([this](CallRing& ring, Watchdog&) {
    Device device(CountOnly{}, 1);
    StuckCommunicator communicator(Group{.axis = "data", .size = 2}, device, ring);
    Watchdog watchdog(ring, folder_, 2, {&communicator});
    watchdog.start();
    for (;;) pause();
  });
  EXPECT_EQ(outcome.exit_code, 1);
}

// Two processes of a job notice together: one speaks.
TEST_F(Watchdogs, OneRankSpeaksForAll) {
  const Outcome outcome = run(
      [](CallRing& ring, Watchdog&) {
        ring.begin(call());
        std::this_thread::sleep_for(milliseconds(20'000));
      },
      2);
  EXPECT_EQ(outcome.exit_code, 1);
  const std::size_t first = outcome.words.find("ending the job");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(outcome.words.find("ending the job", first + 1), std::string::npos) << outcome.words;
}

}  // namespace
}  // namespace choir::tests
