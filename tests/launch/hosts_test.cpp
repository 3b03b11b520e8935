// Hosts that are lost: how many ranks a run can use on those that are left, and launch/train --supervise on them.
#include "launch/hosts.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/core/error.h"
#include "tests/launch/jobs.h"
#include "tests/launch/namespace_hosts.h"

namespace choir::tests {
namespace {

Config config_of(std::int64_t batch, std::int64_t micro_batch, std::int64_t tensor) {
  Config config;
  config.train.batch = batch;
  config.parallel.micro_batch = micro_batch;
  config.parallel.tensor = tensor;
  config.data.path = "tokens.h5";
  return config;
}

TEST(Hosts, TheDataAxisTakesTheLargestNumberOfRanksThatDividesTheBatch) {
  EXPECT_EQ(fit_ranks(config_of(8, 0, 1), 7), (Fit{4, 0}));
  EXPECT_EQ(fit_ranks(config_of(8, 0, 1), 8), (Fit{8, 0}));
  EXPECT_EQ(fit_ranks(config_of(12, 0, 2), 15), (Fit{12, 0}));
  EXPECT_EQ(fit_ranks(config_of(9, 0, 2), 7), (Fit{6, 0}));
}

TEST(Hosts, TheMicroBatchIsLoweredIfMoreRanksNeedIt) {
  EXPECT_EQ(fit_ranks(config_of(8, 4, 1), 7), (Fit{4, 2}));
  EXPECT_EQ(fit_ranks(config_of(8, 2, 1), 7), (Fit{4, 2})) << "it is low enough";
  EXPECT_EQ(fit_ranks(config_of(12, 4, 1), 4), (Fit{4, 3}));
}

TEST(Hosts, TooFewRanksForTheOtherAxesFitNothing) { EXPECT_EQ(fit_ranks(config_of(8, 1, 4), 3).ranks, 0); }

TEST(Hosts, AHostIsKnownByItsFullNameOrByThePartBeforeTheFirstDot) {
  EXPECT_TRUE(same_host("node1", "node1.cluster.org"));
  EXPECT_TRUE(same_host("node1.cluster.org", "node1"));
  EXPECT_FALSE(same_host("node1.a.org", "node1.b.org"));
  EXPECT_FALSE(same_host("node1", "node10"));
  EXPECT_FALSE(same_host("10.0.0.1", "10"));
}

TEST(Hosts, AHostfileGivesSlotsAndALineWithoutThemIsAMistake) {
  const std::string path = ::testing::TempDir() + "hostfile";
  std::ofstream(path) << "# nodes\na slots=2 max_slots=4\n\nb slots=3 # slow\na slots=1\n";
  const std::vector<Host> hosts = read_hostfile(path);
  EXPECT_EQ(hosts, (std::vector<Host>{{"a", 3}, {"b", 3}}));
  EXPECT_EQ(first_with(hosts, 3).size(), 1u);
  EXPECT_EQ(first_with(hosts, 4).size(), 2u);
  EXPECT_EQ(without(hosts, {"a.cluster"}), (std::vector<Host>{{"b", 3}}));
  std::ofstream(path) << "a\n";
  EXPECT_THROW(read_hostfile(path), ConfigError);
  EXPECT_THROW(read_hostfile(path + "-none"), ConfigError);
}

/// launch/train --supervise with a hostfile, on the first of several hosts.
class SupervisedHosts : public ::testing::Test {
 protected:
  pid_t start_on(const NamespaceHosts& hosts, const std::string& settings, const std::string& arguments) const {
    shell("mkdir -p " + shop_.path("tmp"));
    return start(hosts.environment() + "export TMPDIR=" + shop_.path("tmp") + " HOSTFILE=" + hosts.file() +
                     " CHOIR=" CHOIR_BINARY " " + settings + "; exec " + hosts.on(0) +
                     CHOIR_SOURCE_DIR "/launch/train " + shop_.path("tiny.yaml") + " train.folder=" +
                     shop_.path("run") + " parallel.micro_batch=1 train.heartbeat=2 --supervise " + arguments,
                 shop_.path("log"));
  }
  std::vector<nlohmann::json> restarts() const {
    std::vector<nlohmann::json> lines;
    std::ifstream file(shop_.path("run") + "/logs/restarts.jsonl");
    for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }
  std::string log() const { return read(shop_.path("log")); }

  const Workshop shop_;
};

TEST_F(SupervisedHosts, ARunGoesOnWithoutAHostWhoseNetworkIsCutAndUsesItAgain) {
  const NamespaceHosts hosts(shop_, {2, 1, 1});
  if (!hosts.problem().empty()) GTEST_SKIP() << "network namespaces are not available: " << hosts.problem();
  const std::string arguments = "checkpoint.every=5 optimizer.schedule=constant train.steps=";
  const Finished whole = shop_.train(4, "whole", arguments + "30 parallel.micro_batch=1");
  ASSERT_EQ(whole.code, 0) << whole.output;
  const pid_t launcher = start_on(hosts, "HOST_SECONDS=2", arguments + "1000000");
  ASSERT_TRUE(reach(shop_, "run", 7)) << log();
  hosts.cut(2);
  // 4 sequences on 3 slots: 2 ranks.
  ASSERT_TRUE(wait_until([&] { return restarts().size() == 1; })) << log();
  const nlohmann::json lost = restarts().front();
  EXPECT_EQ(lost["hosts"], nlohmann::json({"host2"})) << lost;
  EXPECT_EQ(lost["left_out"], nlohmann::json({"host2"})) << lost;
  EXPECT_EQ(lost["ranks"], 2) << lost;
  for (const char* key : {"detection", "teardown", "wait", "start", "load", "repeated"})
    EXPECT_GE(lost["lost"][key].get<double>(), 0) << lost;
  EXPECT_GT(lost["lost"]["detection"].get<double>(), 1) << "train.heartbeat is 2 s; " << lost;
  EXPECT_TRUE(says(log(), "without host2 (no answer): 2 ranks on 1 hosts; idle: host1\n")) << log();
  hosts.mend(2);
  ASSERT_TRUE(wait_until([&] { return restarts().size() == 2; })) << log();
  EXPECT_EQ(restarts().back()["reason"], "hosts have returned");
  EXPECT_TRUE(says(log(), "hosts have returned: saving, then going on with 4 ranks")) << log();
  kill(launcher, SIGTERM);
  EXPECT_EQ(wait_for(launcher), 75) << log();
  std::vector<double> losses = shop_.metric("run", "loss");
  ASSERT_GT(losses.size(), 30u);
  losses.resize(30);
  expect_near(losses, shop_.metric("whole", "loss"), relative);
  // What orted has left on the host that was cut off is not swept; here all hosts have the same TMPDIR.
  EXPECT_EQ(shell("ls " + shop_.path("tmp") + " | grep -v '^ompi[.]host2[.]'").output, "");
}

TEST_F(SupervisedHosts, AHostThatHasFailedTwiceIsReplacedByASpareOne) {
  const NamespaceHosts hosts(shop_, {1, 1, 1});
  if (!hosts.problem().empty()) GTEST_SKIP() << "network namespaces are not available: " << hosts.problem();
  const std::string arguments = "train.steps=400 checkpoint.every=5";
  const Finished whole = shop_.train(2, "whole", arguments + " parallel.micro_batch=1");
  ASSERT_EQ(whole.code, 0) << whole.output;
  const pid_t launcher = start_on(hosts, "RANKS=2", arguments);
  for (std::size_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(reach(shop_, "run", 7 + 80.0 * static_cast<double>(i))) << log();
    kill_rank(shop_.path("run"), 1);
    ASSERT_TRUE(wait_until([&] { return restarts().size() == i + 1; })) << log();
    EXPECT_EQ(restarts().back()["hosts"], nlohmann::json({"host1"})) << restarts().back();
  }
  EXPECT_TRUE(says(log(), "host1 has failed twice: it is left out")) << log();
  EXPECT_EQ(restarts().back()["left_out"], nlohmann::json({"host1"}));
  EXPECT_EQ(restarts().back()["ranks"], 2);
  EXPECT_EQ(wait_for(launcher), 0) << log();
  EXPECT_TRUE(says(shop_.choir("calls " + shop_.path("run")).output, "on host2, ")) << log();
  EXPECT_EQ(shop_.metric("run", "loss"), shop_.metric("whole", "loss"));
}

}  // namespace
}  // namespace choir::tests
