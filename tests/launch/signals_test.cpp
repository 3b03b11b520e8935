// Signals: what stops a run, when, and with which exit code; and what launch/train ends.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/launch/jobs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

const std::string endless = "train.steps=1000000 checkpoint.every=5 ";

/// Sends `signals` in turn, every few milliseconds, until the command has ended. Returns its exit code.
int signal_until_it_ends(pid_t child, const std::vector<int>& signals) {
  int status = 0;
  for (std::size_t i = 0; waitpid(child, &status, WNOHANG) == 0; ++i) {
    kill(child, signals[i % signals.size()]);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// The job's folders of a launch/train with TMPDIR=tmp: in it, and of the same names in /dev/shm.
std::vector<std::string> job_folders(const Workshop& shop) {
  std::vector<std::string> folders;
  for (const auto& entry : fs::directory_iterator(shop.path("tmp"))) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("choir-")) continue;  // of Open MPI, for a program without mpirun
    folders.push_back(entry.path().string());
    if (fs::exists("/dev/shm/" + name)) folders.push_back("/dev/shm/" + name);
  }
  return folders;
}

TEST(Signals, WhileMpiStartsStopTheRunBeforeItsFirstStep) {
  const std::pair<int, int> cases[] = {{SIGUSR1, 75}, {SIGINT, 130}, {SIGTERM, 75}};
  for (const auto& [signal, code] : cases) {
    const Workshop shop;
    const std::string early =
        "export LD_PRELOAD=" CHOIR_TEST_FAULTS " FAULT_CALL=MPI_Init_thread FAULT_SIGNAL=" + std::to_string(signal) +
        "; ";
    for (const int ranks : {1, 2}) {
      const Finished stopped = shell(early + shop.train_command(ranks, "run"));
      EXPECT_EQ(stopped.code, code) << stopped.output;
      EXPECT_TRUE(contains(stopped, "stopped before the first step as asked")) << stopped.output;
      EXPECT_FALSE(fs::exists(shop.path("run") + "/metrics.jsonl"));
    }
    const Finished started = shop.train(1, "run");
    EXPECT_EQ(started.code, 0) << "a folder that holds no run\n" << started.output;
  }
}

TEST(Signals, RepeatedOnesChangeNothing) {
  const Workshop shop;
  const pid_t child = start(shop.train_command_alone("run", endless), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 7)) << read(shop.path("log"));
  EXPECT_EQ(signal_until_it_ends(child, {SIGUSR1, SIGTERM}), 75) << read(shop.path("log"));
  EXPECT_TRUE(says(read(shop.path("log")), "--resume continues the run")) << read(shop.path("log"));

  // To the ranks, since mpirun itself can be ended by SIGUSR1 when it does not forward it any more.
  const pid_t job = start(shop.train_command(2, "job", endless + "parallel.tensor=2"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "job", 7)) << read(shop.path("log"));
  EXPECT_TRUE(wait_until([&] {
    for (const pid_t rank : children(job, "choir")) kill(rank, SIGUSR1);
    return says(read(shop.path("log")), "--resume continues the run");
  }));
  EXPECT_EQ(wait_for(job), 75) << read(shop.path("log"));
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("job")).code, 0);
}

TEST(Signals, TwoInterruptsWithinASecondAreOne) {
  const Workshop shop;
  const pid_t child = start(shop.train_command_alone("run", endless), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 7)) << read(shop.path("log"));
  // More than once, since a signal that is pending already is not delivered a second time.
  const auto first = Clock::now();
  while (Clock::now() - first < std::chrono::milliseconds(200)) {
    kill(child, SIGINT);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(wait_for(child), 130) << read(shop.path("log"));
  EXPECT_TRUE(says(read(shop.path("log")), "--resume continues the run")) << read(shop.path("log"));
}

TEST(Signals, AnInterruptMoreThanASecondAfterTheFirstEndsAtOnce) {
  const Workshop shop;
  create(shop.path("hold"));
  const pid_t child = start(
      held("pwrite", "/metrics.jsonl", shop.path("hold")) + shop.train_command_alone("run", endless), shop.path("log"));
  ASSERT_TRUE(wait_until([&] { return fs::exists(shop.path("hold.held")); })) << read(shop.path("log"));
  const auto first = Clock::now();
  EXPECT_EQ(signal_until_it_ends(child, {SIGINT, SIGTERM, SIGUSR1}), 130) << read(shop.path("log"));
  EXPECT_GT(Clock::now() - first, std::chrono::seconds(1));
  EXPECT_FALSE(says(read(shop.path("log")), "stopped after step")) << read(shop.path("log"));
}

TEST(Grace, ARunThatCannotReachTheEndOfItsStepSaysWhatItWasDoing) {
  const Workshop shop;
  struct Case {
    std::string name, arguments, call, part, said;
    bool after_a_checkpoint;  // else from the start
  };
  const Case cases[] = {{"step", "", "pwrite", "/metrics.jsonl", "rank 0 is recording step ", true},
                        {"start", "--resume", "pread", "/rank-0.h5", "rank 0 is starting the run\n", false},
                        {"save", "--resume", "pwrite", "/rank-0.h5", "rank 0 is saving step ", false}};
  for (const auto& [name, arguments, call, part, said, after_a_checkpoint] : cases) {
    const std::string hold = shop.path(name), log = hold + ".log";
    if (!after_a_checkpoint) create(hold);
    const pid_t child =
        start(held(call, part, hold) + shop.train_command(1, "run", endless + "train.grace=0.5 " + arguments), log);
    if (after_a_checkpoint) {
      ASSERT_TRUE(wait_until([&] { return fs::exists(shop.path("run") + "/checkpoints/step-00000005"); })) << read(log);
      create(hold);
    }
    ASSERT_TRUE(wait_until([&] { return fs::exists(hold + ".held"); })) << read(log);
    kill(child, SIGUSR1);
    EXPECT_EQ(wait_for(child), 1) << read(log);
    EXPECT_TRUE(says(read(log), "asked the run to stop 0.5 s ago, and it has not ended (train.grace)")) << read(log);
    EXPECT_TRUE(says(read(log), said)) << read(log);
  }
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
}

TEST(LaunchTrainSignals, ASignalToEveryProcessOfTheJobSaves) {
  for (const int signal : {SIGTERM, SIGUSR1}) {
    const Workshop shop;
    const pid_t launcher = start(launch_train(shop, endless), shop.path("log"));
    ASSERT_TRUE(reach(shop, "run", 7)) << read(shop.path("log"));
    const std::vector<pid_t> job = job_of(launcher);
    ASSERT_EQ(job.size(), 3u) << read(shop.path("log"));
    for (const pid_t process : job) kill(process, signal);
    kill(-launcher, signal);
    EXPECT_EQ(wait_for(launcher), 75) << read(shop.path("log"));
    EXPECT_TRUE(says(read(shop.path("log")), "--resume continues the run")) << read(shop.path("log"));
    EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
  }
}

TEST(LaunchTrainSignals, ASignalBeforeTheRanksCatchItStopsTheRun) {
  // Rank 0 sends the signal when rank 1 runs too.
  const std::string signal_launcher =
      "if [ $OMPI_COMM_WORLD_RANK = 0 ]; then until [ -e $0.1 ]; do sleep 0.05; done; kill -TERM $STARTED_BY\n"
      "else touch $0.1; fi\n";
  const std::string to_launcher = "export STARTED_BY=$$; ";
  {  // The first SIGUSR1 has no effect on the ranks, as if mpirun had not started them yet.
    const Workshop shop;
    const std::string program = wrapper(
        shop, "trap got=yes USR1\n" + signal_launcher + "until [ \"$got\" ]; do sleep 0.05; done\ntrap '' USR1");
    const pid_t launcher = start(to_launcher + launch_train(shop, endless, program), shop.path("log"));
    EXPECT_EQ(wait_for(launcher), 75) << read(shop.path("log"));
    EXPECT_TRUE(says(read(shop.path("log")), "as asked")) << read(shop.path("log"));
  }
  {  // It ends them.
    const Workshop shop;
    const std::string program = wrapper(shop, signal_launcher + "while :; do sleep 0.05; done");
    const pid_t launcher = start(to_launcher + launch_train(shop, endless, program), shop.path("log"));
    EXPECT_EQ(wait_for(launcher), 75) << read(shop.path("log"));
  }
}

TEST(LaunchTrainSignals, ASecondInterruptEndsRanksThatCannotStop) {
  const Workshop shop;
  create(shop.path("hold"));
  const pid_t launcher =
      start(held("pwrite", "/metrics.jsonl", shop.path("hold")) + launch_train(shop, endless), shop.path("log"));
  ASSERT_TRUE(wait_until([&] { return fs::exists(shop.path("hold.held")); })) << read(shop.path("log"));
  const std::vector<pid_t> job = job_of(launcher);
  ASSERT_EQ(job.size(), 3u);
  EXPECT_EQ(signal_until_it_ends(launcher, {SIGTERM, SIGINT, SIGUSR1}), 130) << read(shop.path("log"));
  for (const pid_t process : job) EXPECT_TRUE(wait_until([&] { return kill(process, 0) != 0; })) << process;
}

TEST(LaunchTrainSignals, AnMpirunThatDoesNotEndIsKilled) {
  // An mpirun that waits for itself after its rank has died, and does not react to signals.
  const Workshop shop;
  fs::create_directories(shop.path("bin"));
  std::ofstream(shop.path("bin") + "/mpirun") << "#!/bin/bash\ntrap '' TERM INT HUP USR1\n"
                                                 "OMPI_COMM_WORLD_RANK=0 sleep 3\nwhile :; do sleep 1; done\n";
  chmod((shop.path("bin") + "/mpirun").c_str(), 0755);
  const pid_t launcher =
      start("export PATH=" + shop.path("bin") + ":$PATH; " + launch_train(shop, endless), shop.path("log"));
  std::vector<pid_t> job;
  ASSERT_TRUE(wait_until([&] { return !(job = children(launcher, "mpirun")).empty(); })) << read(shop.path("log"));
  EXPECT_EQ(wait_for(launcher), 1) << read(shop.path("log"));
  EXPECT_TRUE(says(read(shop.path("log")), "mpirun has not ended")) << read(shop.path("log"));
  EXPECT_NE(kill(job.front(), 0), 0);
  EXPECT_EQ(job_folders(shop), std::vector<std::string>());
}

TEST(LaunchTrainSignals, FoldersOfDeadJobsAreRemovedAndNoOthers) {
  const Workshop shop;
  const std::string program =
      wrapper(shop, "[ $OMPI_COMM_WORLD_RANK = 1 ] || { sleep 600 & echo $! >" + shop.path("child") + "; }");
  const pid_t launcher = start(launch_train(shop, endless, program), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 7)) << read(shop.path("log"));
  const std::vector<std::string> folders = job_folders(shop);
  ASSERT_FALSE(folders.empty());
  const std::vector<pid_t> job = job_of(launcher);
  ASSERT_EQ(job.size(), 3u);
  const auto another = [&] {
    return shell("export TMPDIR=" + shop.path("tmp") + " CHOIR=" CHOIR_BINARY "; " CHOIR_SOURCE_DIR "/launch/train " +
                 shop.path("tiny.yaml") + " train.folder=" + shop.path("another") + " --resume");
  };
  // While the job runs, also without its launcher.
  for (const bool launcher_dies : {false, true}) {
    if (launcher_dies) {
      kill(launcher, SIGKILL);
      wait_for(launcher);
    }
    EXPECT_EQ(another().code, 0);
    EXPECT_EQ(job_folders(shop), folders);
  }
  // A process of the job that still lives when its mpirun and its ranks are dead.
  const auto child = static_cast<pid_t>(std::stol(read(shop.path("child"))));
  const auto ended = [](pid_t process) { return kill(process, 0) != 0; };
  kill(job[0], SIGKILL);
  ASSERT_TRUE(wait_until([&] { return ended(job[0]) && ended(job[1]) && ended(job[2]); }));
  EXPECT_EQ(another().code, 0);
  EXPECT_EQ(job_folders(shop), folders);
  kill(child, SIGKILL);
  ASSERT_TRUE(wait_until([&] { return ended(child); }));

  const std::string of_another_user = shop.path("tmp") + "/choir-" + std::to_string(geteuid()) + "-AAAAAA";
  fs::create_directories(of_another_user);
  std::ofstream(of_another_user + "/lock") << "";
  std::ofstream(of_another_user + "/session") << job[0] << "\n";
  const bool is_root = chown(of_another_user.c_str(), 12345, 12345) == 0;
  EXPECT_EQ(another().code, 0);
  EXPECT_EQ(job_folders(shop), is_root ? std::vector<std::string>{of_another_user} : std::vector<std::string>());
  for (const std::string& folder : folders) EXPECT_FALSE(fs::exists(folder)) << folder;
}

TEST(FileSizeLimit, FailsPrepareWithAnErrorAndLeavesNoPartialFile) {
  const Workshop shop;
  std::ofstream(shop.path("long")) << std::string(300000, 'a');
  for (const std::string limit : {"ulimit -f 100; ", "ulimit -f 0; "}) {
    const std::string folder = shop.path("out");
    const Finished failed = shell(limit + "env -u LD_PRELOAD " CHOIR_BINARY " prepare " + shop.path("tiny.yaml") + " " +
                                  shop.path("long") + " data.path=" + folder + "/tokens.h5 | cat");
    EXPECT_TRUE(contains(failed, "cannot write " + folder)) << failed.output;
    EXPECT_TRUE(contains(failed, "File too large")) << failed.output;
    EXPECT_TRUE(contains(failed, "fix: free space there, or write elsewhere")) << failed.output;
    EXPECT_TRUE(fs::is_empty(folder));
    EXPECT_EQ(shell(limit + CHOIR_BINARY " prepare " + shop.path("tiny.yaml") + " " + shop.path("long") +
                    " data.path=" + folder + "/tokens.h5 2>/dev/null >/dev/null")
                  .code,
              1);
  }
}

}  // namespace
}  // namespace choir::tests
