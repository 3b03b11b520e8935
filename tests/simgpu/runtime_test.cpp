// The run-time double: legal programs give correct results and no findings in every order.
#include "tests/simgpu/runtime.h"

#include <gtest/gtest.h>
#include <nvtx3/nvToolsExt.h>

#include <numeric>
#include <vector>

#include "tests/simgpu/planted/streams.h"

namespace choir::simgpu::tests {
namespace {

constexpr int n = 200;
constexpr std::size_t bytes = n * sizeof(float);

class Runtime : public ::testing::TestWithParam<Options> {
 protected:
  void SetUp() override {
    configure(GetParam());
    cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }
  void TearDown() override {
    cudaEventDestroy(event);
    cudaStreamDestroy(one);
    cudaStreamDestroy(two);
    for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
  }

  cudaStream_t one = nullptr, two = nullptr;
  cudaEvent_t event = nullptr;
};

TEST_P(Runtime, KernelsOfOneStreamRunInOrder) {
  float* x = nullptr;
  ASSERT_EQ(cudaMallocAsync(reinterpret_cast<void**>(&x), bytes, one), cudaSuccess);
  cudaMemsetAsync(x, 0, bytes, one);
  for (int i = 1; i <= 10; ++i) {
    planted::add(x, n, static_cast<float>(i), one);
    planted::double_into(x, x, n, one);
  }
  std::vector<float> host(n);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), x, bytes, cudaMemcpyDeviceToHost, one), cudaSuccess);
  float expected = 0;
  for (int i = 1; i <= 10; ++i) expected = 2 * (expected + static_cast<float>(i));
  EXPECT_EQ(host, std::vector<float>(n, expected));
  cudaFreeAsync(x, one);
}

TEST_P(Runtime, EventsOrderTwoStreams) {
  float *x = nullptr, *y = nullptr;
  cudaMalloc(reinterpret_cast<void**>(&x), bytes);
  cudaMalloc(reinterpret_cast<void**>(&y), bytes);
  cudaMemsetAsync(x, 0, bytes, one);
  planted::add(x, n, 3, one);
  cudaEventRecord(event, one);
  cudaStreamWaitEvent(two, event, 0);
  planted::double_into(x, y, n, two);
  cudaEventRecord(event, two);  // the same event again: the wait above was for its first record
  cudaStreamWaitEvent(one, event, 0);
  planted::add(x, n, 1, one);
  cudaDeviceSynchronize();
  std::vector<float> host(n);
  cudaMemcpy(host.data(), y, bytes, cudaMemcpyDeviceToHost);
  EXPECT_EQ(host, std::vector<float>(n, 6));
  cudaFree(x);
  cudaFree(y);
}

TEST_P(Runtime, PinnedCopiesArriveWhenTheHostHasWaited) {
  float *x = nullptr, *pinned = nullptr;
  cudaMalloc(reinterpret_cast<void**>(&x), bytes);
  cudaMallocHost(reinterpret_cast<void**>(&pinned), bytes);
  std::iota(pinned, pinned + n, 0.0f);
  cudaMemcpyAsync(x, pinned, bytes, cudaMemcpyHostToDevice, one);
  cudaStreamSynchronize(one);
  planted::add(x, n, 1, one);
  cudaMemcpyAsync(pinned, x, bytes, cudaMemcpyDeviceToHost, one);
  cudaEventRecord(event, one);
  cudaEventSynchronize(event);
  for (int i = 0; i < n; ++i) EXPECT_EQ(pinned[i], static_cast<float>(i + 1));
  cudaFreeHost(pinned);
  cudaFree(x);
}

TEST_P(Runtime, CopiesFromOrdinaryMemoryHaveReadItWhenTheyReturn) {
  float* x = nullptr;
  cudaMalloc(reinterpret_cast<void**>(&x), bytes);
  std::vector<float> host(n, 4);
  cudaMemcpyAsync(x, host.data(), bytes, cudaMemcpyHostToDevice, one);
  host.assign(n, 5);
  cudaMemcpyAsync(host.data(), x, bytes, cudaMemcpyDeviceToHost, one);
  EXPECT_EQ(host, std::vector<float>(n, 4));
  cudaFree(x);
}

TEST_P(Runtime, MemoryIsLimitedAndFreedInStreamOrder) {
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  EXPECT_EQ(free, total);
  void *x = nullptr, *y = nullptr;
  EXPECT_EQ(cudaMallocAsync(&x, total, one), cudaSuccess);
  EXPECT_EQ(cudaMallocAsync(&y, 1, one), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  cudaFreeAsync(x, one);
  EXPECT_EQ(cudaMallocAsync(&x, total, one), cudaSuccess);
  cudaFreeAsync(x, one);
}

TEST_P(Runtime, LaunchesThatNoDeviceAcceptsAreRefused) {
  planted::launch_with(2048, 0, one);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  planted::launch_with(32, 64 << 10, one);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  planted::launch_with(32, 0, one);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_P(Runtime, RangesAreSeen) {
  EXPECT_TRUE(open_ranges().empty());
  nvtxRangePushA("step");
  nvtxRangePushA("attention forward");
  EXPECT_EQ(open_ranges(), (std::vector<std::string>{"step", "attention forward"}));
  nvtxRangePop();
  nvtxRangePop();
  EXPECT_TRUE(open_ranges().empty());
}

TEST_P(Runtime, TrafficOfAKernelIsCounted) {
  float *x = nullptr, *y = nullptr;
  cudaMalloc(reinterpret_cast<void**>(&x), bytes);
  cudaMalloc(reinterpret_cast<void**>(&y), bytes);
  cudaMemsetAsync(x, 0, bytes, one);
  planted::double_into(x, y, n, one);
  cudaDeviceSynchronize();
  ASSERT_EQ(traffic().size(), 1u);
  EXPECT_EQ(traffic()[0].launches, 1);
  EXPECT_EQ(traffic()[0].bytes_read, static_cast<std::int64_t>(bytes));
  EXPECT_EQ(traffic()[0].bytes_written, static_cast<std::int64_t>(bytes));
  cudaFree(x);
  cudaFree(y);
}

std::vector<Options> orders() {
  std::vector<Options> all;
  for (const int capability : {80, 90, 100})
    for (const Order order : {Order::program, Order::late, Order::random})
      for (const unsigned seed : {1u, 2u})
        all.push_back({.compute_capability = capability, .memory_bytes = 1 << 20, .order = order, .seed = seed});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Orders, Runtime, ::testing::ValuesIn(orders()), [](const auto& instance) {
  const Options& o = instance.param;
  return std::string(o.order == Order::program ? "program"
                     : o.order == Order::late  ? "late"
                                               : "random") +
         "_" + std::to_string(o.compute_capability) + "_" + std::to_string(o.seed);
});

}  // namespace
}  // namespace choir::simgpu::tests
