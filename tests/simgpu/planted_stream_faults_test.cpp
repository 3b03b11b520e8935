// Programs with one mistake each between streams, memory and the host: the run-time double finds it in every order, not
// only when it changes a result. The same programs without mistakes are in runtime_test.cpp.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <vector>

#include "tests/simgpu/planted/streams.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

constexpr int n = 200;
constexpr std::size_t bytes = n * sizeof(float);

struct Program {
  Program() {
    cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    cudaMalloc(reinterpret_cast<void**>(&x), bytes);
    cudaMalloc(reinterpret_cast<void**>(&y), bytes);
    cudaMallocHost(reinterpret_cast<void**>(&pinned), bytes);
    cudaMemsetAsync(x, 0, bytes, one);
    cudaStreamSynchronize(one);
  }
  ~Program() {
    cudaDeviceSynchronize();
    cudaFree(x);
    cudaFree(y);
    cudaFreeHost(pinned);
    cudaStreamDestroy(one);
    cudaStreamDestroy(two);
  }
  cudaStream_t one = nullptr, two = nullptr;
  float *x = nullptr, *y = nullptr, *pinned = nullptr;
};

/// In every order and with several seeds: a finding of `kind` whose text contains `words`.
void expect(const std::string& kind, const std::string& words, const std::function<void(Program&)>& mistake,
            double hang_seconds = 60) {
  for (const Order order : {Order::program, Order::late, Order::random})
    for (const unsigned seed : {1u, 2u, 3u, 4u, 5u}) {
      configure({.memory_bytes = 1 << 20, .order = order, .seed = seed, .hang_seconds = hang_seconds});
      {
        Program program;
        mistake(program);
      }
      bool found = false;
      std::string all;
      for (const Finding& finding : take_findings()) {
        found = found || (finding.kind == kind && finding.text.find(words) != std::string::npos);
        all += finding.kind + ": " + finding.text + "\n";
      }
      EXPECT_TRUE(found) << "order " << static_cast<int>(order) << ", seed " << seed << ": no " << kind << "\n" << all;
    }
}

TEST(PlantedStreamFaults, MissingEventWait) {
  expect("stream race", "nothing orders them", [](Program& p) {
    planted::add(p.x, n, 1, p.one);
    planted::double_into(p.x, p.y, n, p.two);
  });
}

TEST(PlantedStreamFaults, EventRecordedTooEarly) {
  expect("stream race", "nothing orders them", [](Program& p) {
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaEventRecord(event, p.one);
    planted::add(p.x, n, 1, p.one);
    cudaStreamWaitEvent(p.two, event, 0);
    planted::double_into(p.x, p.y, n, p.two);
    cudaEventDestroy(event);
  });
}

TEST(PlantedStreamFaults, CopyBeforeTheKernelHasEnded) {
  expect("stream race", "cudaMemcpyAsync", [](Program& p) {
    planted::add(p.x, n, 1, p.one);
    cudaMemcpyAsync(p.pinned, p.x, bytes, cudaMemcpyDeviceToHost, p.two);
  });
}

TEST(PlantedStreamFaults, UseInAnotherStreamBeforeTheAllocation) {
  expect("stream race", "cudaMallocAsync", [](Program& p) {
    float* memory = nullptr;
    cudaMallocAsync(reinterpret_cast<void**>(&memory), bytes, p.one);
    cudaMemsetAsync(memory, 0, bytes, p.two);
    cudaDeviceSynchronize();
    cudaFree(memory);
  });
}

TEST(PlantedStreamFaults, FreedWhileAnotherStreamUsesIt) {
  expect("use after free", "cudaFreeAsync", [](Program& p) {
    float* memory = nullptr;
    cudaMallocAsync(reinterpret_cast<void**>(&memory), bytes, p.one);
    cudaMemsetAsync(memory, 0, bytes, p.one);
    cudaStreamSynchronize(p.one);
    planted::add(memory, n, 1, p.two);
    cudaFreeAsync(memory, p.one);
  });
}

TEST(PlantedStreamFaults, NullStream) {
  expect("null stream", "on the null stream", [](Program& p) { planted::add(p.x, n, 1, nullptr); });
}

TEST(PlantedStreamFaults, TheHostReadsAnUnfinishedCopy) {
  for (const Order order : {Order::program, Order::late, Order::random}) {
    configure({.memory_bytes = 1 << 20, .order = order});
    Program p;
    cudaMemcpyAsync(p.pinned, p.x, bytes, cudaMemcpyDeviceToHost, p.one);
    // The checker cannot see the host's reads; but the values are not there before the host has waited for the copy.
    if (order == Order::late) {
      EXPECT_TRUE(std::isnan(p.pinned[0]));
    }
    cudaStreamSynchronize(p.one);
    EXPECT_EQ(p.pinned[0], 0);
    EXPECT_TRUE(take_findings().empty());
  }
}

TEST(PlantedStreamFaults, TheHostChangesPinnedMemoryBeforeItIsRead) {
  configure({.memory_bytes = 1 << 20, .order = Order::late});
  {
    Program p;
    std::fill_n(p.pinned, n, 1.0f);
    cudaMemcpyAsync(p.x, p.pinned, bytes, cudaMemcpyHostToDevice, p.one);
    p.pinned[n / 2] = 2;
  }
  const std::vector<Finding> findings = take_findings();
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].kind, "host write");
}

TEST(PlantedStreamFaults, ReadOfUninitialisedMemory) {
  expect("uninitialised read", "cudaMemcpyAsync",
         [](Program& p) { cudaMemcpyAsync(p.pinned, p.y, bytes, cudaMemcpyDeviceToHost, p.one); });
}

TEST(PlantedStreamFaults, CopyBeyondTheEnd) {
  expect("out of bounds", "cudaMemsetAsync", [](Program& p) { cudaMemsetAsync(p.x + 1, 0, bytes, p.one); });
}

TEST(PlantedStreamFaults, WaitForAnOperationThatNeverComes) {
  configure({.memory_bytes = 1 << 20, .hang_seconds = 0.3});
  {
    Program p;
    enqueue(p.one, {.name = "a collective that nobody joins", .ready = [] { return false; }});
    EXPECT_EQ(cudaStreamSynchronize(p.one), cudaErrorLaunchTimeout);
  }
  const std::vector<Finding> findings = take_findings();
  ASSERT_FALSE(findings.empty());
  EXPECT_EQ(findings[0].kind, "hang");
  EXPECT_NE(findings[0].text.find("a collective that nobody joins"), std::string::npos) << findings[0].text;
}

TEST(PlantedStreamFaults, ADeviceThatBreaksStaysBroken) {
  configure({.memory_bytes = 1 << 20});
  {
    Program p;
    fail_device(cudaErrorIllegalAddress, 1);
    for (int i = 0; i < 3; ++i) planted::add(p.x, n, 1, p.one);
    EXPECT_EQ(cudaStreamSynchronize(p.one), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaMemsetAsync(p.x, 0, bytes, p.one), cudaErrorIllegalAddress);
  }
}

TEST(PlantedStreamFaults, AnAllocationFailsOnDemand) {
  configure({.memory_bytes = 1 << 20});
  fail_allocation(1);
  void *first = nullptr, *second = nullptr;
  EXPECT_EQ(cudaMalloc(&first, 100), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 100), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&second, 100), cudaSuccess);
  cudaFree(first);
  cudaFree(second);
  cudaGetLastError();
}

/// The exit code of a process that runs the test PlantedExits.DISABLED_`body`.
int exit_code_of(const std::string& body) {
  const std::string command =
      "/proc/self/exe --gtest_also_run_disabled_tests --gtest_filter=PlantedExits.DISABLED_" + body;
  char program[4096] = {};
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return -1;
  const std::string line = std::string(program) + command.substr(command.find(' ')) + " > /dev/null 2>&1";
  const int status = std::system(line.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(PlantedStreamFaults, AProcessThatLeaksOrEndsWithFindingsFails) {
  EXPECT_EQ(exit_code_of("NothingIsLeft"), 0);
  EXPECT_EQ(exit_code_of("MemoryIsLeft"), 86);
  EXPECT_EQ(exit_code_of("AStreamIsLeft"), 86);
  EXPECT_EQ(exit_code_of("AFindingIsLeft"), 86);
}

// Run by the test above, each in its own process.
TEST(PlantedExits, DISABLED_NothingIsLeft) {
  void* memory = nullptr;
  cudaMalloc(&memory, 10);
  cudaFree(memory);
}
TEST(PlantedExits, DISABLED_MemoryIsLeft) {
  void* memory = nullptr;
  cudaMalloc(&memory, 10);
}
TEST(PlantedExits, DISABLED_AStreamIsLeft) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
}
TEST(PlantedExits, DISABLED_AFindingIsLeft) { add_finding({.kind = "test", .text = "nobody takes it"}); }

}  // namespace
}  // namespace choir::simgpu::tests
