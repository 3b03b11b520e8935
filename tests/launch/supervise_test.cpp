// launch/train --supervise: what is started again, how often, and what is not. And a start that waits for its folder.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/launch/jobs.h"

namespace choir::tests {
namespace {

std::vector<nlohmann::json> restarts(const Workshop& shop) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(shop.path("run") + "/logs/restarts.jsonl");
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::string log_of(const Workshop& shop) { return read(shop.path("log")); }

/// Rank 0 writes a line to the file `starts` at each start; then both ranks run `script`.
std::string counted(const Workshop& shop, const std::string& script) {
  return wrapper(shop, "[ $OMPI_COMM_WORLD_RANK = 1 ] || echo >>" + shop.path("starts") + "\n" + script);
}

/// Rank 0 dies; rank 1, which must not end the job before that, waits.
const std::string rank_0_dies = "[ $OMPI_COMM_WORLD_RANK = 0 ] || exec sleep 600\nkill -KILL $$";

std::ptrdiff_t starts(const Workshop& shop) {
  const std::string lines = read(shop.path("starts"));
  return std::count(lines.begin(), lines.end(), '\n');
}

TEST(Supervise, ARunWhoseRanksDieOrStopGoesOnWithTheLossesOfAnUndisturbedOne) {
  const Workshop shop;
  const std::string arguments = "train.steps=400 checkpoint.every=5 train.heartbeat=2 ";
  const Finished whole = shop.train(2, "whole", "parallel.tensor=2 " + arguments);
  ASSERT_EQ(whole.code, 0) << whole.output;

  const pid_t launcher = start(launch_train(shop, arguments + "--supervise"), shop.path("log"));
  struct Fault {
    double step;
    int signal, code;
    std::string reason;
  };
  const std::vector<Fault> faults = {{12, SIGKILL, 137, "SIGKILL has ended a rank"},
                                     {60, SIGSTOP, 1, "a rank has ended with an error"}};
  for (std::size_t i = 0; i < faults.size(); ++i) {
    std::vector<pid_t> job;
    ASSERT_TRUE(reach(shop, "run", faults[i].step)) << log_of(shop);
    ASSERT_TRUE(wait_until([&] { return (job = job_of(launcher)).size() == 3; })) << log_of(shop);
    kill(job.back(), faults[i].signal);
    ASSERT_TRUE(wait_until([&] { return restarts(shop).size() == i + 1; })) << log_of(shop);
    const nlohmann::json restart = restarts(shop).back();
    EXPECT_EQ(restart["code"], faults[i].code);
    EXPECT_EQ(restart["reason"], faults[i].reason);
    EXPECT_GE(restart["step"], restart["from"]);
    EXPECT_EQ(restart["from"].get<int>() % 5, 0);
    for (const char* key : {"detection", "teardown", "wait", "start", "load", "repeated"})
      EXPECT_GE(restart["lost"][key].get<double>(), 0) << restart;
    EXPECT_GE(restart["lost"]["wait"].get<double>(), 1) << restart;
    EXPECT_GT(restart["lost"]["start"].get<double>(), 0) << restart;
    EXPECT_EQ(restart["lost"]["repeated"].get<double>() > 0, restart["step"] > restart["from"]) << restart;
  }
  EXPECT_EQ(wait_for(launcher), 0) << log_of(shop);
  EXPECT_EQ(shop.metric("run", "loss"), shop.metric("whole", "loss"));
  EXPECT_EQ(shop.metric("run", "held_out_loss"), shop.metric("whole", "held_out_loss"));
  EXPECT_TRUE(says(log_of(shop), "training again after ")) << log_of(shop);
  // "2 restarts; 7 % of 9.3 s were steps of this run": of what the steps took, and of all.
  const std::string log = log_of(shop), words = "2 restarts; ";
  const std::size_t at = log.find(words);
  ASSERT_NE(at, std::string::npos) << log;
  int share = 0;
  double all = 0;
  ASSERT_EQ(std::sscanf(log.c_str() + at + words.size(), "%d %% of %lf s", &share, &all), 2) << log;
  const std::vector<double> steps = shop.metric("run", "seconds");
  EXPECT_NEAR(share, 100 * std::accumulate(steps.begin(), steps.end(), 0.0) / all, 1) << log;
}

TEST(Supervise, WithoutANewCheckpointItGivesUp) {
  const Workshop shop;
  const pid_t launcher =
      start(launch_train(shop, "train.restarts=2 --supervise", counted(shop, rank_0_dies)), shop.path("log"));
  EXPECT_EQ(wait_for(launcher), 137) << log_of(shop);
  EXPECT_EQ(starts(shop), 3) << log_of(shop);
  EXPECT_TRUE(says(log_of(shop), "2 restarts have made no checkpoint (train.restarts = 2): giving up")) << log_of(shop);
}

TEST(Supervise, MistakesAndLossesThatAreNotFiniteAreNotRepeated) {
  struct Case {
    std::string words;
    int code;
  };
  const Case cases[] = {{"data.path=/nowhere/tokens.h5", 2},
                        {"optimizer.kind=sgd optimizer.rate=1e30 optimizer.clip=0", 3}};
  for (const auto& [words, code] : cases) {
    const Workshop shop;
    const pid_t launcher = start(launch_train(shop, words + " --supervise", counted(shop, "")), shop.path("log"));
    EXPECT_EQ(wait_for(launcher), code) << log_of(shop);
    EXPECT_EQ(starts(shop), 1) << log_of(shop);
  }
}

TEST(Supervise, ASignalBetweenTwoStartsEndsIt) {
  const Workshop shop;
  const pid_t launcher =
      start(launch_train(shop, "train.restarts=100 --supervise", counted(shop, rank_0_dies)), shop.path("log"));
  ASSERT_TRUE(wait_until([&] { return says(log_of(shop), "starting again from step 0 in 4 s"); })) << log_of(shop);
  kill(launcher, SIGTERM);
  EXPECT_EQ(wait_for(launcher), 75) << log_of(shop);
  EXPECT_EQ(starts(shop), 3) << log_of(shop);
}

// The run folder is on a small tmpfs, in a mount namespace of the job.
TEST(Supervise, ARunWhoseDiskIsFullGoesOnWhenItHasRoomAgain) {
  const Workshop shop;
  const Finished whole = shop.train(2, "whole", "parallel.tensor=2");
  ASSERT_EQ(whole.code, 0) << whole.output;
  const std::string disk = shop.path("disk");
  const Finished can = shell("mkdir " + disk + "; unshare --mount mount -t tmpfs tmpfs " + disk);
  if (can.code != 0) GTEST_SKIP() << "mount namespaces are not available: " << can.output;
  const std::string mounted = "exec unshare --mount sh -c 'mount -t tmpfs -o size=2m tmpfs " + disk + " && mkdir " +
                              disk + "/run && ln -sfn " + disk + "/run " + shop.path("run") +
                              " && dd if=/dev/zero of=" + disk + "/ballast bs=4k 2>/dev/null; \"$@\"; code=$?; cp -r " +
                              disk + "/run " + shop.path("kept") + "; exit $code' sh ";
  std::string command = launch_train(shop, "train.restarts=1000 --supervise");
  command.replace(command.find("exec "), 5, mounted);
  const pid_t launcher = start(command, shop.path("log"));
  ASSERT_TRUE(wait_until([&] { return says(log_of(shop), "starting again from step 0 in 2 s"); })) << log_of(shop);
  EXPECT_TRUE(says(log_of(shop), "No space left on device")) << log_of(shop);
  std::filesystem::remove("/proc/" + std::to_string(launcher) + "/root" + disk + "/ballast");
  EXPECT_EQ(wait_for(launcher), 0) << log_of(shop);
  EXPECT_EQ(shop.metric("kept", "loss"), shop.metric("whole", "loss"));
}

TEST(LockWait, AStartWaitsForTheRunThatUsesTheFolder) {
  const Workshop shop;
  const pid_t first =
      start(shop.train_command_alone("run", "train.steps=1000000 checkpoint.every=5"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 7)) << log_of(shop);
  const Finished refused = shell(shop.train_command_alone("run", "--resume train.lock_wait=0.5"));
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "waiting for it, at most 0.5 s (train.lock_wait)")) << refused.output;
  EXPECT_TRUE(contains(refused, "is in use: process " + std::to_string(first))) << refused.output;

  const std::string waits = shop.train_command_alone("run", "--resume train.steps=1000000 train.lock_wait=600");
  const auto start_waiting = [&](const std::string& log) {
    const pid_t second = start(waits, shop.path(log));
    EXPECT_TRUE(wait_until([&] { return says(read(shop.path(log)), "waiting for it"); })) << read(shop.path(log));
    return second;
  };
  const pid_t stopped = start_waiting("log2");
  kill(stopped, SIGUSR1);
  EXPECT_EQ(wait_for(stopped), 75) << read(shop.path("log2"));
  const pid_t second = start_waiting("log3");
  kill(first, SIGUSR1);
  EXPECT_EQ(wait_for(first), 75) << log_of(shop);
  ASSERT_TRUE(wait_until([&] { return says(read(shop.path("log3")), "resuming "); })) << read(shop.path("log3"));
  kill(second, SIGUSR1);
  EXPECT_EQ(wait_for(second), 75) << read(shop.path("log3"));
}

}  // namespace
}  // namespace choir::tests
