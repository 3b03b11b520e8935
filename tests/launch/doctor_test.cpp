// choir doctor names everything that it checks, and its exit code says whether Choir can run on this machine; under
// mpirun it compares the hosts and names the slow ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "kernels/types.h"
#include "launch/cluster_checks.h"
#include "tests/launch/namespace_hosts.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

Finished doctor(const std::string& folder) { return shell(CHOIR_BINARY " doctor " + folder); }

TEST(Doctor, NamesWhatTheMachineHas) {
  const std::string folder = ::testing::TempDir() + "choir-doctor-runs";
  const Finished finished = doctor(folder);
  EXPECT_EQ(finished.code, 0) << finished.output;
  for (const char* name : {"MPI", "HDF5", "processor", "run folder", "CUDA toolkit"})
    EXPECT_NE(finished.output.find(std::string("\n") + name + " "), std::string::npos) << name << "\n"
                                                                                       << finished.output;
  if constexpr (kernels::built_with_cuda) {
    for (const char* name : {"CUDA driver", "GPU", "NCCL", "cuDNN"})
      EXPECT_NE(finished.output.find(std::string("\n") + name), std::string::npos) << name << "\n" << finished.output;
  }
  EXPECT_NE(finished.output.find("written and read back"), std::string::npos) << finished.output;
  EXPECT_FALSE(std::filesystem::exists(folder)) << "the doctor left a folder behind";
}

TEST(Doctor, SaysWhatToDoAboutAFolderThatCannotBeWritten) {
  const Finished finished = doctor("/proc/runs");
  EXPECT_EQ(finished.code, 1) << finished.output;
  EXPECT_NE(finished.output.find("BROKEN"), std::string::npos) << finished.output;
  EXPECT_NE(finished.output.find("choir doctor FOLDER"), std::string::npos) << finished.output;
}

/// Links of ranks 0, 1, 2, ... in a ring, one rank a host, with the bandwidth of the slower end.
std::vector<Link> ring(const std::vector<double>& bandwidths) {
  std::vector<Link> links;
  for (std::size_t i = 0; i < bandwidths.size(); ++i) {
    const std::size_t next = (i + 1) % bandwidths.size();
    links.push_back({.a = static_cast<int>(i),
                     .b = static_cast<int>(next),
                     .host_a = "node" + std::to_string(i),
                     .host_b = "node" + std::to_string(next),
                     .latency = 20e-6,
                     .bytes_per_second = std::min(bandwidths[i], bandwidths[next])});
  }
  return links;
}

TEST(DoctorOfACluster, NamesTheHostWhoseLinksAreAllSlow) {
  EXPECT_EQ(judge_links("data axis", ring({1e9, 1e9, 1e9, 0.9e9})).state, Check::State::good);
  const Check slow = judge_links("data axis", ring({1e9, 1e9, 0.2e9, 0.9e9}));
  EXPECT_EQ(slow.state, Check::State::limited);
  EXPECT_EQ(slow.fix, "node2 is slow: all its links to other hosts are");
}

TEST(DoctorOfACluster, NamesThePairIfOneLinkIsSlow) {
  std::vector<Link> links = ring({1e9, 1e9, 1e9, 1e9});
  links[1].bytes_per_second = 0.1e9;
  EXPECT_EQ(judge_links("data axis", links).fix, "slow: ranks 1 and 2 (node1, node2): 20 us, 100 MB/s");
  links[1] = links[0];
  links[3].latency = 1e-3;
  EXPECT_EQ(judge_links("data axis", links).fix, "slow: ranks 3 and 0 (node3, node0): 1000 us, 1.0 GB/s");
  links[3] = links[0];
  links[2].host_a = links[2].host_b = "node2";
  links[2].bytes_per_second = 9e9;
  EXPECT_EQ(judge_links("data axis", links).state, Check::State::good) << "memory is faster than the network";
}

TEST(DoctorOfACluster, NamesHostsThatDifferOrWriteSlowly) {
  const std::vector<std::string> hosts = {"a", "b", "b", "c"};
  EXPECT_EQ(judge_alike("versions", hosts, {"1", "1", "1", "1"}).state, Check::State::good);
  const Check differs = judge_alike("versions", hosts, {"1", "1", "1", "2"});
  EXPECT_EQ(differs.state, Check::State::broken);
  EXPECT_EQ(differs.fix, "c has 2: install the same on all hosts");

  EXPECT_EQ(judge_clocks(hosts, {0, 0.1, 0.1, -0.1}, 1e-3).state, Check::State::good);
  EXPECT_EQ(judge_clocks(hosts, {0, 0.1, 0.1, -7}, 1e-3).fix, "c is 7.0 s behind a: synchronize them (chrony)");

  EXPECT_EQ(judge_writes("runs", {{"a", 1e9}, {"b", 0.6e9}}).state, Check::State::good);
  EXPECT_EQ(judge_writes("runs", {{"a", 1e9}, {"b", 0.2e9}}).fix, "b is slow: 200 MB/s");
  EXPECT_EQ(judge_writes("runs", {{"a", 1e9}, {"b", 0}}).state, Check::State::broken);
}

TEST(DoctorOfACluster, NamesFaultyAndSlowHardware) {
  const Burn good{.host = "a", .processor = "P", .flops_per_second = 1e11, .products = 100, .digest = 7};
  std::vector<Burn> burns(4, good);
  EXPECT_EQ(judge_burns(burns).state, Check::State::good) << judge_burns(burns).fix;
  EXPECT_EQ(judge_burns(burns).text, "4 ranks of P: 100.0 to 100.0 GFLOP/s");
  burns[1].wrong = 2;
  EXPECT_EQ(judge_burns(burns).state, Check::State::broken);
  EXPECT_EQ(judge_burns(burns).fix,
            "rank 1 (a): 2 of 100 products had other bits than the first: its hardware is faulty");
  burns[1] = good;
  burns[2].digest = 8;
  EXPECT_EQ(judge_burns(burns).state, Check::State::broken);
  EXPECT_EQ(judge_burns(burns).fix.find("rank 2 (a): its product has other bits"), 0u) << judge_burns(burns).fix;
  burns[2].processor = "Q";
  EXPECT_EQ(judge_burns(burns).state, Check::State::good) << "another processor may round otherwise";
  burns[3].flops_per_second = 0.7e11;
  EXPECT_EQ(judge_burns(burns).state, Check::State::limited);
  EXPECT_EQ(judge_burns(burns).fix, "rank 3 (a): slow, 70.0 GFLOP/s where 100.0 are usual");
  burns[0] = {.host = "b", .problem = "no memory"};
  EXPECT_EQ(judge_burns(burns).state, Check::State::broken);
  EXPECT_EQ(judge_burns(burns).fix.find("rank 0 (b): no memory; rank 3"), 0u) << judge_burns(burns).fix;
}

TEST(DoctorOfACluster, MeasuresTheAxesOfTheLayout) {
  const Workshop shop;
  const Finished four = shop.mpirun(4, "doctor " + shop.path("runs") + " parallel.tensor=2");
  EXPECT_EQ(four.code, 0) << four.output;
  for (const char* line :
       {"\nversions      ok ", "\nclocks        ok ", "\nburn          ", "\ntensor axis   ", "\ndata axis     "})
    EXPECT_EQ(count(four, line), 1u) << line << four.output;
  EXPECT_EQ(count(four, "\nrun folder    "), 2u) << "of this host, and of all\n" << four.output;
  EXPECT_TRUE(contains(four, "2 links within a host: ")) << four.output;
  EXPECT_FALSE(contains(four, "context axis")) << four.output;
  EXPECT_FALSE(std::filesystem::exists(shop.path("runs"))) << "the doctor left a folder behind";

  const Finished three = shop.mpirun(3, "doctor " + shop.path("runs") + " parallel.tensor=2");
  EXPECT_EQ(three.code, 2) << three.output;
  EXPECT_TRUE(contains(three, "start a multiple of 2 ranks")) << three.output;
}

TEST(DoctorOfACluster, NamesAHostWithASlowNetwork) {
  const Workshop shop;
  const NamespaceHosts hosts(shop, {1, 1, 1, 1});
  if (!hosts.problem().empty()) GTEST_SKIP() << "network namespaces are not available: " << hosts.problem();
  const std::string problem = hosts.slow_down(2);
  if (!problem.empty()) GTEST_SKIP() << "the network of a host cannot be made slow: " << problem;
  const Finished doctor = shell(hosts.environment() + "exec " + hosts.on(0) + "mpirun --hostfile " + hosts.file() +
                                " --bind-to none -n 4 " CHOIR_BINARY " doctor " + shop.path("runs"));
  EXPECT_EQ(doctor.code, 0) << doctor.output;
  EXPECT_TRUE(contains(doctor, "host2 is slow: all its links to other hosts are")) << doctor.output;
}

}  // namespace
}  // namespace choir::tests
