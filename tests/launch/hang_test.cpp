// A job that hangs ends by itself, whatever it was doing, and one report names the rank that is the reason.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/launch/jobs.h"
#include "tests/launch/namespace_hosts.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

const std::string endless = "train.steps=1000000 parallel.tensor=2 ";

std::size_t times(const std::string& text, const std::string& words) { return count({0, text}, words); }

/// The exit code; -1 if the job does not end in time, and then it is killed.
int end_of(pid_t child) {
  int status = 0;
  const auto ended = [&] { return waitpid(child, &status, WNOHANG) != 0; };
  if (wait_until(ended)) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  shell("pkill -KILL -P " + std::to_string(child));
  kill(-child, SIGKILL);
  wait_for(child);
  return -1;
}

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

/// One report, on the terminal and in logs/hang.txt, that names `rank` and no other as one that is not heard, with
/// what it did last: `heard` of its last beat, `doing` of its calls.
void expect_report(const Workshop& shop, int rank, const std::string& heard, const std::string& doing) {
  const std::string named = "rank " + std::to_string(rank) + " on " + host_name() + ": not heard for ";
  std::vector<std::string> texts = {read(shop.path("log"))};
  if (!doing.empty()) texts.push_back(read(shop.path("run") + "/logs/hang.txt"));  // else the run has not begun
  for (const std::string& text : texts) {
    EXPECT_EQ(times(text, "ending the job"), 1u) << text;
    EXPECT_EQ(times(text, ": not heard for "), 1u) << text;
    EXPECT_TRUE(says(text, "1 rank has not been heard for 2 s (train.heartbeat)")) << text;
    const std::size_t line = text.find(named);
    ASSERT_NE(line, std::string::npos) << text;
    EXPECT_TRUE(says(text.substr(line, text.find('\n', line) - line), ", last " + heard)) << text;
    const std::string listed = "\nrank " + std::to_string(rank) + ":\n  on " + host_name() + ", " + doing;
    EXPECT_TRUE(doing.empty() || says(text, listed)) << text;
  }
}

/// Stops a rank when its calls say that it is `doing` something.
void stop_while(const Workshop& shop, pid_t child, int rank, const std::string& doing) {
  const pid_t process = process_of_rank(child, rank);
  ASSERT_NE(process, 0) << read(shop.path("log"));
  const std::string wanted = "\nrank " + std::to_string(rank) + ":\n  on " + host_name() + ", " + doing;
  int tries = 0;
  EXPECT_TRUE(wait_until([&] {
    kill(process, SIGCONT);
    std::this_thread::sleep_for(std::chrono::milliseconds(tries++ % 20));
    kill(process, SIGSTOP);
    return says(shop.choir("calls " + shop.path("run")).output, wanted);
  })) << shop.choir("calls " + shop.path("run")).output;
}

struct Case {
  std::string name, arguments, doing;
  int ranks, rank;
};
void PrintTo(const Case& of, std::ostream* to) { *to << of.arguments; }

class RankThatStops : public ::testing::TestWithParam<Case> {};

TEST_P(RankThatStops, IsNamed) {
  const auto& [name, arguments, doing, ranks, rank] = GetParam();
  const Workshop shop;
  const pid_t child =
      start(shop.train_command(ranks, "run", endless + "train.heartbeat=2 parallel.micro_batch=1 " + arguments),
            shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 3)) << read(shop.path("log"));
  stop_while(shop, child, rank, doing);
  EXPECT_EQ(end_of(child), 1) << read(shop.path("log"));
  expect_report(shop, rank, "", doing);
}

const Case cases[] = {
    {"rank_0_in_a_step", "checkpoint.every=0", "computing step ", 2, 0},
    {"rank_1_in_a_step", "checkpoint.every=0", "computing step ", 2, 1},
    {"rank_3_of_4", "checkpoint.every=0", "computing step ", 4, 3},
    {"rank_1_in_an_evaluation", "checkpoint.every=0 train.evaluate_every=2 train.evaluate_sequences=0",
     "evaluating after step ", 2, 1},
    {"rank_0_in_a_save", "checkpoint.every=1", "saving step ", 2, 0},
};
INSTANTIATE_TEST_SUITE_P(Hang, RankThatStops, ::testing::ValuesIn(cases),
                         [](const auto& instance) { return instance.param.name; });

/// Stops a rank while it waits at `call`, and lets the others go on.
void stop_where_it_is_held(const Workshop& shop, int rank, const std::string& call, const std::string& part,
                           const std::string& arguments, const std::string& doing) {
  const std::string hold = shop.path("hold");
  create(hold);
  const pid_t child =
      start(held(call, part, hold) + shop.train_command(2, "run", endless + "train.heartbeat=2 " + arguments),
            shop.path("log"));
  ASSERT_TRUE(wait_until([&] { return fs::exists(hold + ".held"); })) << read(shop.path("log"));
  std::this_thread::sleep_for(std::chrono::seconds(1));  // the others hear what it does: five beats
  kill(process_of_rank(child, rank), SIGSTOP);
  fs::remove(hold);
  EXPECT_EQ(end_of(child), 1) << read(shop.path("log"));
  expect_report(shop, rank, doing, "");
}

// No rank hears another before MPI has started.
TEST(Hang, ARankThatIsStoppedWhileMpiStartsIsNamed) {
  const Workshop shops[2];
  pid_t children[2];
  for (const int rank : {0, 1})
    children[rank] =
        start("export LD_PRELOAD=" CHOIR_TEST_FAULTS " FAULT_CALL=MPI_Init_thread FAULT_RANK=" + std::to_string(rank) +
                  " FAULT_SIGNAL=" + std::to_string(SIGSTOP) + "; " +
                  shops[rank].train_command(2, "run", endless + "train.start_timeout=1"),
              shops[rank].path("log"));
  for (const int rank : {0, 1}) {
    const auto reported = [&] { return says(read(shops[rank].path("log")), "ending the job"); };
    EXPECT_TRUE(wait_until(reported));
    const std::string log = read(shops[rank].path("log"));
    EXPECT_TRUE(says(log, "has begun or ended for 1 s (train.start_timeout)")) << log;
    EXPECT_EQ(times(log, ": stopped while MPI starts, process "), 1u) << log;
    EXPECT_TRUE(
        says(log, "rank " + std::to_string(rank) + " on " + host_name() + ": stopped while MPI starts, process "))
        << log;
    EXPECT_EQ(times(log, "ending the job"), 1u) << log;
    // mpirun may wait for itself when a rank has ended in MPI_Init; launch/train ends it then.
    shell("pkill -KILL -P " + std::to_string(children[rank]));
    kill(-children[rank], SIGKILL);
    wait_for(children[rank]);
  }
}

TEST(Hang, ARankThatIsStoppedBeforeTheFirstStepIsNamed) {
  for (const int rank : {0, 1}) {
    const Workshop shop;  // rank 1 waits for rank 0, which writes config.yaml
    stop_where_it_is_held(shop, rank, "pwrite", "/config.yaml", "", "loading");
  }
}

TEST(Hang, ARankThatIsStoppedWhileItVerifiesACheckpointIsNamed) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "run", "parallel.tensor=2").code, 0);
  stop_where_it_is_held(shop, 1, "pread", "/rank-1.h5", "--resume", "starting the run");
}

// All ranks beat, but the storage of all hangs while the run waits for its save.
TEST(Hang, StorageThatHangsOnAllRanksIsNoticed) {
  const Workshop shop;
  create(shop.path("hold"));
  const pid_t child = start(held("fsync", "/rank-", shop.path("hold")) +
                                shop.train_command(2, "run", endless + "checkpoint.every=3 checkpoint.timeout=2"),
                            shop.path("log"));
  EXPECT_EQ(end_of(child), 1) << read(shop.path("log"));
  const std::string log = read(shop.path("log"));
  EXPECT_TRUE(fs::exists(shop.path("hold.held")));
  EXPECT_TRUE(says(log, "has not ended for 2 s (checkpoint.timeout)")) << log;
  EXPECT_TRUE(says(log, "rank 0 on " + host_name() + ": ")) << log;
  EXPECT_TRUE(says(log, "rank 1 on " + host_name() + ": ")) << log;
  EXPECT_EQ(times(log, "ending the job"), 1u) << log;
  fs::remove(shop.path("hold"));
}

// A rank whose process beats, but which does not go on.
TEST(Hang, ALoadThatHangsEndsWithTheLimitOfTheStart) {
  const Workshop shop;
  create(shop.path("hold"));
  const pid_t child = start(held("pwrite", "/config.yaml", shop.path("hold")) +
                                shop.train_command(2, "run", endless + "train.start_timeout=2"),
                            shop.path("log"));
  EXPECT_EQ(end_of(child), 1) << read(shop.path("log"));
  const std::string log = read(shop.path("log"));
  EXPECT_TRUE(says(log, "has begun or ended for 2 s (train.start_timeout)")) << log;
  EXPECT_TRUE(says(log, "rank 0 on " + host_name() + ": loading, past ")) << "it is in no call\n" << log;
  EXPECT_TRUE(says(log, "rank 1 on " + host_name() + ": loading, in all_reduce #")) << "it waits\n" << log;
  EXPECT_EQ(times(log, "ending the job"), 1u) << log;
}

TEST(Hang, RanksOfAnEarlierRunAreNotListed) {
  const Workshop shop;
  ASSERT_EQ(shop.train(4, "run", "parallel.tensor=2").code, 0);
  const pid_t child = start(shop.train_command(2, "run", endless + "train.heartbeat=2 --resume"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 20)) << read(shop.path("log"));
  stop_while(shop, child, 1, "computing step ");
  EXPECT_EQ(end_of(child), 1) << read(shop.path("log"));
  expect_report(shop, 1, "", "computing step ");
  for (const std::string& text : {read(shop.path("log")), shop.choir("calls " + shop.path("run")).output}) {
    EXPECT_TRUE(says(text, "rank 1:\n")) << text;
    EXPECT_FALSE(says(text, "rank 2:\n")) << text;
    EXPECT_FALSE(says(text, "rank 3:\n")) << text;
  }
}

TEST(Hang, AJobThatIsSuspendedGoesOn) {
  const Workshop shop;
  const std::string arguments =
      "parallel.tensor=2 train.heartbeat=3 train.timeout=3 train.steps=300 checkpoint.every=0";
  ASSERT_EQ(shop.train(2, "whole", arguments).code, 0);
  const pid_t child = start(shop.train_command(2, "run", arguments), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 5)) << read(shop.path("log"));
  const pid_t ranks[] = {process_of_rank(child, 0), process_of_rank(child, 1)};
  for (const pid_t rank : ranks) kill(rank, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(7));  // longer than the limits
  for (const pid_t rank : ranks) kill(rank, SIGCONT);
  EXPECT_EQ(end_of(child), 0) << read(shop.path("log"));
  EXPECT_EQ(shop.metric("run", "loss"), shop.metric("whole", "loss"));
}

TEST(Hang, WhatIsNotWatchedIsSaid) {
  const Workshop shop;
  const Finished run = shop.train(2, "run",
                                  "parallel.tensor=2 train.heartbeat=0 train.timeout=0 train.start_timeout=0 "
                                  "checkpoint.timeout=0");
  EXPECT_EQ(run.code, 0) << run.output;
  for (const char* words :
       {"train.heartbeat = 0: ", "train.timeout = 0: ", "train.start_timeout = 0: ", "checkpoint.timeout = 0: "})
    EXPECT_EQ(count(run, words), 1u) << run.output;
}

TEST(Hang, BothSidesOfACutNetworkEndAndNameTheOther) {
  const Workshop shop;
  const NamespaceHosts hosts(shop, {2, 2});
  if (!hosts.problem().empty()) GTEST_SKIP() << "network namespaces are not available: " << hosts.problem();
  const std::string mpirun =
      hosts.environment() + "exec " + hosts.on(0) + "mpirun --hostfile " + hosts.file() +
      " --bind-to none --mca btl_vader_single_copy_mechanism none --mca odls_base_sigkill_timeout 0 -n 4 " CHOIR_BINARY
      " train " +
      shop.path("tiny.yaml") + " train.folder=" + shop.path("run") +
      " parallel.tensor=2 train.steps=1000000 train.heartbeat=3 parallel.micro_batch=1";
  const pid_t child = start(mpirun, shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 5)) << read(shop.path("log"));
  hosts.cut(1);
  const auto ranks = [&] {
    return shell("pgrep -f '^[^ ]*choir train .*train.folder=" + shop.path("run") + "'").output;
  };
  EXPECT_TRUE(wait_until([&] { return ranks().empty(); })) << "left: " << ranks() << read(shop.path("log"));
  const std::string log = read(shop.path("log")), file = read(shop.path("run") + "/logs/hang.txt");
  EXPECT_EQ(times(log, "ending the job"), 1u) << log;
  EXPECT_EQ(times(file, "ending the job"), 2u) << file;
  for (const char* words : {"rank 2 on host1: not heard for ", "rank 3 on host1: not heard for "})
    EXPECT_TRUE(says(log, words) && says(file, words)) << log << file;
  for (const char* words : {"rank 0 on host0: not heard for ", "rank 1 on host0: not heard for "})
    EXPECT_TRUE(says(file, words) && !says(log, words)) << log << file;
  kill(-child, SIGKILL);
  wait_for(child);
}

}  // namespace
}  // namespace choir::tests
