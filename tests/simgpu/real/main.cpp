// main() of tests_gpu: the tests of CUDA kernels on a real GPU. Without one it says so and ends with exit code 77.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "framework/core/cuda.h"
#include "tests/support/watchdog.h"

int main(int argc, char** argv) {
  // A real GPU has one generation, its own: the tests run once. Without those of mistakes, which the simulator finds,
  // and of refusals, which its cuBLASLt makes on demand.
  GTEST_FLAG_SET(filter, "*/0:*/80:FlashAttentionShapes.*-*IsFound*:*ARefus*:*FusedAndApart*");
  ::testing::InitGoogleTest(&argc, argv);
  std::string reason;
  if (choir::cuda::visible_gpus(reason) == 0) {
    std::printf("tests_gpu: skipped: %s\n", reason.c_str());
    return 77;
  }
  const choir::GpuFacts gpu = choir::cuda::gpu_facts(0);
  std::printf("tests_gpu: on %s, sm_%d\n", gpu.name.c_str(), gpu.compute_capability);
  choir::tests::start_watchdog(90, 0);
  return RUN_ALL_TESTS();
}
