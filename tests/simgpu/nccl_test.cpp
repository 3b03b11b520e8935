// The rules of NCCL that its double follows, with ranks as threads: what a call returns, when its result is complete,
// and what is refused until then (NCCL's user guide, "Communicators", and its source of 2.26 to 2.30).
#include "tests/simgpu/nccl.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <barrier>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

constexpr int ranks = 2;
constexpr std::size_t n = 100;

/// Runs `body` on two threads, each a rank with its own GPU and stream.
void on_two_ranks(const std::function<void(int rank, ncclUniqueId id, cudaStream_t stream)>& body, int devices = 2) {
  configure({.devices = devices});
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      cudaSetDevice(rank % devices);
      cudaStream_t stream = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      body(rank, id, stream);
      cudaStreamDestroy(stream);
    });
  for (std::thread& thread : threads) thread.join();
}

ncclResult_t state_of(ncclComm_t communicator) {
  ncclResult_t state = ncclSuccess;
  EXPECT_EQ(ncclCommGetAsyncError(communicator, &state), ncclSuccess);
  return state;
}

ncclResult_t settled(ncclComm_t communicator) {
  while (state_of(communicator) == ncclInProgress) std::this_thread::yield();
  return state_of(communicator);
}

/// A non-blocking communicator, ready for use.
ncclComm_t make_root(int rank, ncclUniqueId id) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t root = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&root, ranks, id, rank, &config), ncclInProgress);
  EXPECT_NE(root, nullptr);
  EXPECT_EQ(settled(root), ncclSuccess);
  return root;
}

void expect_no_findings() {
  for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
}

TEST(Nccl, ASplitContinuesAfterItHasReturnedSuccess) {
  on_two_ranks([](int rank, ncclUniqueId id, cudaStream_t) {
    const ncclComm_t root = make_root(rank, id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    ncclComm_t part = nullptr, other = nullptr;
    EXPECT_EQ(ncclCommSplit(root, 0, rank, &part, &config), ncclSuccess);
    EXPECT_EQ(part, nullptr);
    EXPECT_EQ(ncclCommSplit(root, 0, rank, &other, &config), ncclInvalidArgument);
    EXPECT_EQ(ncclCommFinalize(root), ncclInvalidArgument);
    EXPECT_EQ(ncclCommDestroy(root), ncclInvalidArgument);
    EXPECT_EQ(settled(root), ncclSuccess);
    EXPECT_NE(part, nullptr);
    EXPECT_EQ(ncclCommFinalize(root), ncclInProgress);
    EXPECT_EQ(settled(root), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(root), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(part), ncclSuccess);
  });
  expect_no_findings();
}

TEST(Nccl, AnAbortEndsASplitThatNoOtherRankJoins) {
  std::barrier asked(ranks);
  on_two_ranks([&](int rank, ncclUniqueId id, cudaStream_t) {
    const ncclComm_t root = make_root(rank, id);
    ncclComm_t part = nullptr;
    if (rank == 0) {
      EXPECT_EQ(ncclCommSplit(root, 0, rank, &part, nullptr), ncclSuccess);
      EXPECT_EQ(state_of(root), ncclInProgress);
    }
    asked.arrive_and_wait();
    EXPECT_EQ(ncclCommAbort(root), ncclSuccess);
    EXPECT_EQ(part, nullptr);
  });
  expect_no_findings();
}

TEST(Nccl, AGpuHasOneRankOnly) {
  on_two_ranks(
      [](int rank, ncclUniqueId id, cudaStream_t) {
        ncclComm_t communicator = nullptr;
        EXPECT_EQ(ncclCommInitRank(&communicator, ranks, id, rank), ncclInvalidUsage);
        EXPECT_NE(std::string(ncclGetLastError(nullptr)).find("Duplicate GPU detected : rank "), std::string::npos);
        ncclCommAbort(communicator);
      },
      1);
  expect_no_findings();
}

TEST(Nccl, AGroupWithARefusedCallDoesNothing) {
  on_two_ranks([](int rank, ncclUniqueId id, cudaStream_t stream) {
    ncclComm_t communicator = nullptr;
    ASSERT_EQ(ncclCommInitRank(&communicator, ranks, id, rank), ncclSuccess);
    float* x = nullptr;
    cudaMalloc(reinterpret_cast<void**>(&x), n * sizeof(float));
    EXPECT_EQ(ncclGroupStart(), ncclSuccess);
    EXPECT_EQ(ncclSend(x, n, ncclFloat32, 1 - rank, communicator, stream), ncclSuccess);
    EXPECT_EQ(ncclRecv(x, n, ncclFloat32, ranks, communicator, stream), ncclInvalidArgument);
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidArgument);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);  // nothing is enqueued
    EXPECT_EQ(ncclCommDestroy(communicator), ncclSuccess);
    cudaFree(x);
  });
  expect_no_findings();
}

TEST(Nccl, AnEmptyCollectiveIsNotABarrier) {
  on_two_ranks([](int rank, ncclUniqueId id, cudaStream_t stream) {
    ncclComm_t communicator = nullptr;
    ASSERT_EQ(ncclCommInitRank(&communicator, ranks, id, rank), ncclSuccess);
    if (rank == 0) {
      EXPECT_EQ(ncclAllReduce(nullptr, nullptr, 0, ncclFloat32, ncclSum, communicator, stream), ncclSuccess);
    }
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(ncclCommDestroy(communicator), ncclSuccess);
  });
  expect_no_findings();
}

TEST(Nccl, OverlappingMemoryIsFound) {
  on_two_ranks([](int rank, ncclUniqueId id, cudaStream_t stream) {
    ncclComm_t communicator = nullptr;
    ASSERT_EQ(ncclCommInitRank(&communicator, ranks, id, rank), ncclSuccess);
    float* x = nullptr;
    cudaMalloc(reinterpret_cast<void**>(&x), 2 * n * sizeof(float));
    cudaMemsetAsync(x, 0, 2 * n * sizeof(float), stream);
    EXPECT_EQ(ncclAllReduce(x, x + 1, n, ncclFloat32, ncclSum, communicator, stream), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(ncclCommDestroy(communicator), ncclSuccess);
    cudaFree(x);
  });
  const std::vector<Finding> findings = take_findings();
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].kind, "overlap");
}

}  // namespace
}  // namespace choir::simgpu::tests
