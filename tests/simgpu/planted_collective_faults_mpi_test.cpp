// Faults planted in collectives between ranks. The simulated NCCL must find each of them.
#include <gtest/gtest.h>

#include <functional>

#include "tests/simgpu/gpu_ranks.h"
#include "tests/simgpu/nccl.h"

namespace choir::simgpu::tests {
namespace {

class PlantedCollectiveFaults : public GpuRanksTest {
 protected:
  void SetUp() override {
    if (world_size() == 1) GTEST_SKIP() << "one rank calls no collectives";
  }

  Communicator& comm = *ranks->mesh.tensor;
  Stream& stream = ranks->device.compute();
  const int size = comm.size(), rank = comm.rank();

  void all_reduce(std::int64_t count, const char* label) {
    comm.all_reduce(ranks->tensor(std::vector<float>(static_cast<std::size_t>(count), 1.f)), Reduce::sum, stream,
                    label);
  }

  /// Ends the job's GPUs; there must be one finding, of this kind, with all these parts in its text.
  void expect_finding(const std::string& kind, const std::vector<std::string>& parts) {
    ranks->device.synchronize();
    const std::vector<Finding> findings = take_findings();
    ASSERT_EQ(findings.size(), 1u) << "on rank " << rank;
    EXPECT_EQ(findings[0].kind, kind);
    for (const std::string& part : parts)
      EXPECT_NE(findings[0].text.find(part), std::string::npos) << findings[0].text << "\nlacks: " << part;
  }

  /// "1, 2": all ranks but rank 0.
  std::string others() const {
    std::string text = "1";
    for (int r = 2; r < size; ++r) text += ", " + std::to_string(r);
    return text;
  }
};

TEST_F(PlantedCollectiveFaults, AnotherCountOnOneRank) {
  all_reduce(10, "before");
  all_reduce(rank == 0 ? 8 : 4, "gradients");
  expect_finding("collective mismatch",
                 {"collective #2 of tensor", "rank 0 called ncclAllReduce of 8 f32, sum, 'gradients'",
                  "rank " + others() + " called ncclAllReduce of 4 f32, sum, 'gradients'"});
}

// The sizes are the same: the only effect is wrong results.
TEST_F(PlantedCollectiveFaults, AnotherOrderOnOneRank) {
  all_reduce(4, rank == 0 ? "blocks.1" : "blocks.0");
  all_reduce(4, rank == 0 ? "blocks.0" : "blocks.1");
  expect_finding("collective mismatch",
                 {"collective #1 of tensor", "rank 0 called ncclAllReduce of 4 f32, sum, 'blocks.1'",
                  "rank " + others() + " called ncclAllReduce of 4 f32, sum, 'blocks.0'"});
}

// The calls hang here. On a GPU they may run at once, and nothing is noticed until a larger job hangs.
TEST_F(PlantedCollectiveFaults, AnotherOrderOfTwoCommunicatorsOnOneRank) {
  ranks.reset();
  configure({.seed = static_cast<unsigned>(rank) + 1u, .hang_seconds = 2});
  ranks = std::make_unique<GpuRanks>();
  const Tensor x = ranks->tensor(std::vector<float>(4, 1.f)), y = ranks->tensor(std::vector<float>(4, 1.f));
  const auto call = [&](bool first) {
    Communicator& axis = first ? *ranks->mesh.tensor : *ranks->mesh.world;
    axis.all_reduce(first ? x : y, Reduce::sum, ranks->device.compute(), first ? "first" : "second");
  };
  call(rank != 0);
  call(rank == 0);
  EXPECT_THROW(ranks->device.synchronize(), std::exception);
  int found = 0, all = 0;
  for (const Finding& finding : take_findings()) {
    if (finding.kind != "launch order") continue;
    ++found;
    EXPECT_NE(finding.text.find("before it rank " + std::to_string(rank) + " has launched"), std::string::npos)
        << finding.text;
  }
  MPI_Allreduce(&found, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  EXPECT_GT(all, 0) << "no rank has found it";
  ranks.reset();
  take_findings();  // of what has hung
}

TEST_F(PlantedCollectiveFaults, AnotherOperationOnOneRank) {
  const Tensor x = ranks->tensor(std::vector<float>(4, 1.f));
  comm.all_reduce(x, rank == 0 ? Reduce::max : Reduce::sum, stream, "loss");
  expect_finding("collective mismatch", {"rank 0 called ncclAllReduce of 4 f32, max", "of 4 f32, sum"});
}

TEST_F(PlantedCollectiveFaults, AMissingCallOnOneRank) {
  all_reduce(4, "first");
  if (rank != 0) all_reduce(4, "second");
  all_reduce(4, "third");
  if (rank == 0) all_reduce(4, "fourth");  // as many calls as the others: without the check the job would succeed
  expect_finding("collective mismatch", {"collective #2 of tensor", "'second'", "'third'"});
}

TEST_F(PlantedCollectiveFaults, AMissingLastCallOnOneRank) {
  all_reduce(4, "first");
  if (rank == 0) {
    ranks.reset();
    EXPECT_TRUE(take_findings().empty());
    return;
  }
  all_reduce(4, "second");
  expect_finding("collective mismatch", {"collective #2 of tensor: rank " + std::to_string(rank) +
                                             " calls ncclAllReduce of 4 f32, sum, 'second'",
                                         "rank 0 has destroyed the communicator instead"});
}

TEST_F(PlantedCollectiveFaults, AMessageOfAnotherSize) {
  const Tensor sent = ranks->tensor(std::vector<float>(rank == 0 ? 3 : 5, 1.f)),
               received = ranks->empty({5}, DType::f32);
  comm.exchange({{sent, (rank + 1) % size}}, {{received, (rank + size - 1) % size}}, stream, "stage 1 output");
  if (rank != 1) {
    ranks->device.synchronize();
    EXPECT_TRUE(take_findings().empty());
    return;
  }
  expect_finding("collective mismatch", {"rank 0 sends a message of 3 f32, 'stage 1 output'",
                                         "rank 1 receives a message of 5 f32, 'stage 1 output'"});
}

// The call ring shows the call of every rank while they wait, and an abort ends the waiting.
TEST_F(PlantedCollectiveFaults, AnAbortEndsTheCallThatARankNeverJoins) {
  if (rank == 1) never_arrive(0);
  all_reduce(4, "gradients");
  EXPECT_EQ(comm.problem(), "");
  EXPECT_TRUE(ranks->ring.in_call());
  MPI_Barrier(MPI_COMM_WORLD);
  comm.abort();
  ranks->device.synchronize();
  EXPECT_TRUE(take_findings().empty());
}

TEST_F(PlantedCollectiveFaults, ACallThatARankNeverJoinsIsAHang) {
  ranks.reset();
  configure({.hang_seconds = 0.3});
  ranks = std::make_unique<GpuRanks>();
  if (rank == 1) never_arrive(0);
  const Tensor x = ranks->tensor(std::vector<float>(4, 1.f));
  ranks->mesh.tensor->all_reduce(x, Reduce::sum, ranks->device.compute(), "gradients");
  const std::vector<Finding> findings = take_findings();
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].kind, "hang");
  EXPECT_NE(findings[0].text.find("ncclAllReduce 'gradients'"), std::string::npos) << findings[0].text;
  MPI_Barrier(MPI_COMM_WORLD);
  ranks->mesh.tensor->abort();
}

}  // namespace
}  // namespace choir::simgpu::tests
