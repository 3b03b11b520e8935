// The watchdog ends a silent process, and only a silent one. It ends the process it is in: each case is a forked child.
#include "framework/comm/watchdog.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

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

  /// Runs `body` in a process with a watchdog of 0.2 s. It exits with 42 if it gets to the end.
  Outcome run(const std::function<void(Watchdog&)>& body, const WatchdogLimits& limits = short_limits) const {
    int ends[2] = {};
    EXPECT_EQ(pipe(ends), 0);
    const auto begin = std::chrono::steady_clock::now();
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      {
        Watchdog watchdog(limits, folder_);
        body(watchdog);
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

  static constexpr WatchdogLimits short_limits{.start = 0.2, .progress = 0.2, .storage = 0.2};

  static Call call() {
    Call call{.number = 7, .bytes = 8, .ranks = 2};
    std::strcpy(call.verb, "all_reduce");
    std::strcpy(call.axis, "data");
    std::strcpy(call.label, "gradients");
    return call;
  }

  std::string folder_;
};

// In every phase: a process that does nothing for longer than its limit ends, and says which limit it was.
TEST_F(Watchdogs, EndsAProcessThatHangsInAnyPhase) {
  struct Case {
    Phase phase;
    std::string key, doing;
  };
  const Case cases[] = {{Phase::start, "train.start_timeout", "starting the run"},
                        {Phase::load, "train.start_timeout", "loading"},
                        {Phase::step, "train.timeout", "computing step 7"},
                        {Phase::evaluate, "train.timeout", "evaluating after step 7"},
                        {Phase::record, "checkpoint.timeout", "recording step 7"},
                        {Phase::save, "checkpoint.timeout", "saving step 7"},
                        {Phase::end, "train.timeout", "ending the run"}};
  for (const auto& [phase, key, doing] : cases) {
    WatchdogLimits limits{.start = 0, .progress = 0, .storage = 0};
    (key == "train.timeout" ? limits.progress : key == "checkpoint.timeout" ? limits.storage : limits.start) = 0.2;
    const Outcome outcome = run(
        [phase = phase](Watchdog& watchdog) {
          watchdog.begin(phase, 7);
          std::this_thread::sleep_for(milliseconds(20'000));
        },
        limits);
    EXPECT_EQ(outcome.exit_code, 1) << doing;
    EXPECT_EQ(outcome.words, "no collective call and no step has begun or ended for 0.2 s (" + key +
                                 ")\n  noticed by rank 0, " + doing + "\nending the job\n");
    EXPECT_LT(outcome.seconds, 15);  // 0.2 s, 2 s for mpirun, and a busy machine
  }
}

// Others may wait for this rank's storage for long, but not in a call.
TEST_F(Watchdogs, EndsAProcessThatHangsInACallWhileItSaves) {
  const Outcome outcome = run(
      [](Watchdog& watchdog) {
        watchdog.begin(Phase::save, 7);
        watchdog.ring().begin(call());
        std::this_thread::sleep_for(milliseconds(20'000));
      },
      {.progress = 0.2});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.words.find("for 0.2 s (train.timeout)"), std::string::npos) << outcome.words;
}

TEST_F(Watchdogs, EndsAProcessWhoseStorageHangsWhileStepsGoOn) {
  const Outcome outcome = run([](Watchdog& watchdog) {
    Stream storage(StreamMode::threaded);
    watchdog.watch({}, &storage);
    storage.enqueue([] { std::this_thread::sleep_for(milliseconds(20'000)); });
    for (int step = 1;; ++step) {
      watchdog.begin(Phase::step, step);
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.words.find("a write of a checkpoint on rank 0 has not ended for 0.2 s (checkpoint.timeout)\n"),
            std::string::npos)
      << outcome.words;
}

TEST_F(Watchdogs, LeavesStorageAloneThatMakesProgress) {
  const Outcome outcome = run(
      [](Watchdog& watchdog) {
        Stream storage(StreamMode::threaded);
        watchdog.watch({}, &storage);
        for (int i = 0; i < 70; ++i) storage.enqueue([] { std::this_thread::sleep_for(milliseconds(10)); });
        storage.synchronize();
        watchdog.watch({}, nullptr);
      },
      {.storage = 0.2});
  EXPECT_EQ(outcome.exit_code, 42) << outcome.words;
}

TEST_F(Watchdogs, LeavesABusyProcessAlone) {
  for (const bool calls : {false, true}) {
    const Outcome outcome = run([calls](Watchdog& watchdog) {
      for (int i = 0; i < 70; ++i) {
        if (calls)
          watchdog.ring().end(watchdog.ring().begin(call()));
        else
          watchdog.begin(Phase::step, i);
        std::this_thread::sleep_for(milliseconds(10));
      }
    });
    EXPECT_EQ(outcome.exit_code, 42) << outcome.words;
    EXPECT_EQ(outcome.words, "");
    EXPECT_LT(outcome.seconds, 5);  // and stops at once in the end
  }
}

TEST_F(Watchdogs, ZeroIsNoLimit) {
  const Outcome outcome = run([](Watchdog&) { std::this_thread::sleep_for(milliseconds(700)); },
                              {.start = 0, .progress = 0.01, .storage = 0.01});
  EXPECT_EQ(outcome.exit_code, 42) << outcome.words;
}

TEST_F(Watchdogs, AddsItsReportToAFile) {
  for (int i = 0; i < 2; ++i) run([](Watchdog&) { std::this_thread::sleep_for(milliseconds(20'000)); });
  std::ostringstream text;
  text << std::ifstream(folder_ + "/hang.txt").rdbuf();
  const std::string report =
      "Z rank 0\nno collective call and no step has begun or ended for 0.2 s (train.start_timeout)";
  const std::size_t first = text.str().find(report);
  ASSERT_NE(first, std::string::npos) << text.str();
  EXPECT_NE(text.str().find(report, first + 1), std::string::npos) << text.str();
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
  const Outcome outcome = run(
      [](Watchdog& watchdog) {
        Device device(CountOnly{}, 1);
        FailingCommunicator communicator(Group{.axis = "data", .size = 2}, device, watchdog.ring());
        watchdog.watch({&communicator}, nullptr);
        std::this_thread::sleep_for(milliseconds(20'000));
      },
      {.progress = 2});
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
  const Outcome outcome = run(
      [](Watchdog& watchdog) {
        Device device(CountOnly{}, 1);
        watchdog.begin(Phase::record, 7);
        FinishedCommunicator communicator(device, watchdog.ring(), watchdog.ring().begin(call()));
        watchdog.watch({&communicator}, nullptr);
        std::this_thread::sleep_for(milliseconds(700));
        watchdog.watch({}, nullptr);
      },
      {.progress = 0.2});
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
  const Outcome outcome = run([](Watchdog& watchdog) {
    Device device(CountOnly{}, 1);
    StuckCommunicator communicator(Group{.axis = "data", .size = 2}, device, watchdog.ring());
    watchdog.watch({&communicator}, nullptr);
    for (;;) pause();
  });
  EXPECT_EQ(outcome.exit_code, 1);
}

}  // namespace
}  // namespace choir::tests
