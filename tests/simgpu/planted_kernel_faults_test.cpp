// The checker finds the mistake of every kernel in planted/faults.cu, in every order of threads, for every target.
// ptx_test.cpp tests that the same kernels without mistakes give no findings.
#include "tests/simgpu/planted_kernels.h"

namespace choir::simgpu::tests {
namespace {

class PlantedKernelFaults : public PlantedKernels {
 protected:
  PlantedKernelFaults() : module(planted_ptx("faults", GetParam())) {}

  /// A finding of this kind in each order. There may be others: one mistake can show in several ways.
  template <class... Arguments>
  void expect(const std::string& kind, const std::string& words, const std::string& kernel, Launch how,
              Arguments... arguments) {
    for (const unsigned seed : seeds) {
      how.seed = seed;
      const LaunchResult result = launch(module, kernel, how, arguments...);
      bool found = false;
      for (const Finding& finding : result.findings) {
        EXPECT_NE(finding.text.find(kernel + ", block ("), std::string::npos) << finding.text;
        EXPECT_NE(finding.text.find("faults.cu:"), std::string::npos) << "names the source line: " << finding.text;
        found = found || (finding.kind == kind && finding.text.find(words) != std::string::npos);
      }
      EXPECT_TRUE(found) << kernel << ", seed " << seed << ": no " << kind << " with: " << words << "\n"
                         << describe(result.findings);
    }
  }

  PtxModule module;
};

TEST_P(PlantedKernelFaults, MissingSyncthreads) {
  CheckedArray<float> x(checker, std::vector<float>(192, 1)), y(checker, std::vector<float>(192));
  expect("data race", "of shared memory", "missing_syncthreads",
         {.grid = {2}, .block = {96}, .dynamic_shared_bytes = 384}, x.data(), y.data(), 96);
}

TEST_P(PlantedKernelFaults, MissingSyncwarp) {
  CheckedArray<float> x(checker, std::vector<float>(32, 1)), y(checker, std::size_t{32});
  expect("data race", "of shared memory", "missing_syncwarp", {.block = {32}}, x.data(), y.data());
}

TEST_P(PlantedKernelFaults, OverwritingWhatOtherLanesRead) {
  CheckedArray<float> x(checker, std::vector<float>(32, 1)), y(checker, std::size_t{32});
  expect("data race", "of shared memory", "early_overwrite", {.block = {32}}, x.data(), y.data());
}

TEST_P(PlantedKernelFaults, OverwritingWhatOtherWarpsRead) {
  CheckedArray<float> x(checker, std::vector<float>(96, 1)), y(checker, std::size_t{96});
  for (const int writer : {0, 40, 95})
    expect("data race", "of shared memory", "overwrite_while_others_read", {.block = {96}}, x.data(), y.data(), writer);
}

TEST_P(PlantedKernelFaults, ReadingWhatAnotherLaneChanges) {
  CheckedArray<float> x(checker, std::vector<float>(32, 1)), y(checker, std::size_t{32});
  expect("data race", "of shared memory", "late_update", {.block = {32}}, x.data(), y.data());
}

TEST_P(PlantedKernelFaults, OffByOneRead) {
  CheckedArray<float> x(checker, std::vector<float>(100, 1)), y(checker, std::size_t{100});
  expect("out of bounds", "read of 4 bytes of global memory", "off_by_one", {.grid = {4}, .block = {32}}, x.data(),
         y.data(), 100);
}

TEST_P(PlantedKernelFaults, UninitialisedSharedMemory) {
  CheckedArray<float> x(checker, std::vector<float>(256, 1)), out(checker, std::size_t{1});
  expect("uninitialised read", "of shared memory", "uninitialised_shared", {.block = {256}}, x.data(), out.data());
}

TEST_P(PlantedKernelFaults, UninitialisedGlobalMemory) {
  for (const unsigned seed : seeds) {
    CheckedArray<float> x(checker, std::vector<float>(32, 1)), y(checker, std::size_t{32});
    const LaunchResult result =
        launch(module, "uninitialised_global", {.block = {32}, .seed = seed}, x.data(), y.data());
    ASSERT_EQ(result.findings.size(), 1u) << describe(result.findings);
    EXPECT_EQ(result.findings[0].kind, "uninitialised read");
  }
}

TEST_P(PlantedKernelFaults, MissingWaitForACopy) {
  CheckedArray<float> x(checker, std::vector<float>(128, 1)), y(checker, std::size_t{128});
  expect("uninitialised read", "of shared memory", "missing_copy_wait", {.block = {32}}, x.data(), y.data());
}

TEST_P(PlantedKernelFaults, BarrierInABranch) {
  CheckedArray<float> y(checker, std::size_t{64});
  expect("divergent barrier", "", "barrier_in_branch", {.block = {64}}, y.data());
}

TEST_P(PlantedKernelFaults, BlocksThatRace) {
  CheckedArray<float> y(checker, std::size_t{1});
  expect("data race", "an access of another block", "block_race", {.grid = {3}, .block = {32}}, y.data());
}

TEST_P(PlantedKernelFaults, MisalignedRead) {
  CheckedArray<float> x(checker, std::vector<float>(4, 1)), y(checker, std::size_t{1});
  expect("misaligned", "read of 8 bytes", "misaligned", {.block = {1}}, x.data(), y.data());
}

INSTANTIATE_TEST_SUITE_P(Targets, PlantedKernelFaults, ::testing::Values(80, 90, 100),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace choir::simgpu::tests
