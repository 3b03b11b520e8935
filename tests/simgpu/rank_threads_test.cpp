// Ranks as threads of one process, each with its own simulated GPU: one seed orders all streams of all ranks, so that
// an order in which something goes wrong can be reproduced. (Elsewhere a rank is a process, as in real runs.)
//
// The program is a small data-parallel training: gradients in buckets, their sums on a separate stream, an update.
#include <gtest/gtest.h>
#include <nccl.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "tests/simgpu/planted/streams.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

constexpr int n = 100, buckets = 3, steps = 3;

enum class Mistake { none, sum_before_the_gradient, update_before_the_sum };

/// One rank's run; returns the weights.
std::vector<float> train(int rank, int ranks, ncclUniqueId id, Mistake mistake) {
  cudaSetDevice(rank);
  ncclComm_t communicator = nullptr;
  EXPECT_EQ(ncclCommInitRank(&communicator, ranks, id, rank), ncclSuccess);
  cudaStream_t compute = nullptr, communicate = nullptr;
  cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&communicate, cudaStreamNonBlocking);
  cudaEvent_t gradient_ready = nullptr, sums_ready = nullptr;
  cudaEventCreateWithFlags(&gradient_ready, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&sums_ready, cudaEventDisableTiming);
  constexpr std::size_t bytes = buckets * n * sizeof(float);
  float *gradient = nullptr, *weight = nullptr;
  cudaMalloc(reinterpret_cast<void**>(&gradient), bytes);
  cudaMalloc(reinterpret_cast<void**>(&weight), bytes);
  cudaMemsetAsync(gradient, 0, bytes, compute);

  for (int step = 0; step < steps; ++step) {
    for (int bucket = 0; bucket < buckets; ++bucket) {
      float* part = gradient + bucket * n;
      planted::add(part, n, static_cast<float>(rank + 1), compute);
      cudaEventRecord(gradient_ready, compute);
      if (mistake != Mistake::sum_before_the_gradient) cudaStreamWaitEvent(communicate, gradient_ready, 0);
      EXPECT_EQ(ncclAllReduce(part, part, n, ncclFloat32, ncclSum, communicator, communicate), ncclSuccess);
    }
    cudaEventRecord(sums_ready, communicate);
    if (mistake != Mistake::update_before_the_sum) cudaStreamWaitEvent(compute, sums_ready, 0);
    planted::double_into(gradient, weight, buckets * n, compute);
  }

  std::vector<float> result(buckets * n);
  cudaStreamSynchronize(communicate);
  cudaMemcpyAsync(result.data(), weight, bytes, cudaMemcpyDeviceToHost, compute);
  cudaStreamSynchronize(compute);
  ncclCommDestroy(communicator);
  cudaFree(gradient);
  cudaFree(weight);
  cudaEventDestroy(gradient_ready);
  cudaEventDestroy(sums_ready);
  cudaStreamDestroy(compute);
  cudaStreamDestroy(communicate);
  return result;
}

std::vector<std::vector<float>> train_all(int ranks, Order order, unsigned seed, Mistake mistake) {
  configure({.devices = ranks, .order = order, .seed = seed});
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  std::vector<std::vector<float>> results(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] { results[static_cast<std::size_t>(rank)] = train(rank, ranks, id, mistake); });
  for (std::thread& thread : threads) thread.join();
  return results;
}

struct Run {
  Order order;
  unsigned seed;
};
std::vector<Run> runs() {
  std::vector<Run> all = {{Order::program, 1}, {Order::late, 1}};
  for (unsigned seed = 1; seed <= 20; ++seed) all.push_back({Order::random, seed});
  return all;
}

TEST(RankThreads, AnyOrderOfAllStreamsGivesTheSum) {
  for (const int ranks : {2, 4})
    for (const auto& [order, seed] : runs()) {
      float sum = 0;  // the sum over the ranks of the last sum plus the number of the rank
      for (int step = 0; step < steps; ++step)
        sum = static_cast<float>(ranks) * sum + static_cast<float>(ranks * (ranks + 1) / 2);
      for (const std::vector<float>& weights : train_all(ranks, order, seed, Mistake::none))
        EXPECT_EQ(weights, std::vector<float>(buckets * n, 2 * sum)) << ranks << " ranks, seed " << seed;
      for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
    }
}

TEST(RankThreads, AMissingEventIsFoundInEveryOrder) {
  for (const Mistake mistake : {Mistake::sum_before_the_gradient, Mistake::update_before_the_sum})
    for (const auto& [order, seed] : runs()) {
      train_all(2, order, seed, mistake);
      const std::vector<Finding> findings = take_findings();
      EXPECT_TRUE(std::any_of(findings.begin(), findings.end(),
                              [](const Finding& finding) {
                                return finding.kind == "stream race" &&
                                       finding.text.find("ncclAllReduce") != std::string::npos;
                              }))
          << "mistake " << static_cast<int>(mistake) << ", order " << static_cast<int>(order) << ", seed " << seed;
    }
}

}  // namespace
}  // namespace choir::simgpu::tests
