// The whole program on simulated GPUs, end to end: training in several layouts, resume, bf16, sampling, doctor, and the
// message if memory runs out. The expected results are those of the CPU, within the bounds of tests/launch.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(GpuRun, AnyLayoutGivesTheLossesOfTheCpu) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "cpu", "train.device=cpu").code, 0);
  const std::vector<double> losses = shop.metric("cpu", "loss"), bits = shop.metric("cpu", "bits_per_byte");
  ASSERT_EQ(losses.size(), 10u);
  const std::pair<int, std::string> layouts[] = {{1, ""},
                                                 {2, "parallel.tensor=2"},
                                                 {2, "parallel.zero=1 parallel.micro_batch=1"},
                                                 {3, "parallel.tensor=3 parallel.sequence=true"}};
  for (const auto& [ranks, layout] : layouts) {
    const Finished run = shop.train(ranks, "gpu", layout);  // train.device: auto finds the GPUs
    ASSERT_EQ(run.code, 0) << run.output;
    EXPECT_TRUE(contains(run, "drives GPU 0")) << run.output;
    expect_near(losses, shop.metric("gpu", "loss"), relative);
    expect_near(bits, shop.metric("gpu", "bits_per_byte"), relative);
    std::filesystem::remove_all(shop.path("gpu"));
  }
}

TEST(GpuRun, ResumeIsExactOnTheSameGpusAndToRoundingOnTheCpu) {
  const Workshop shop;
  // Some steps are rejected, when the next ones are on the GPU already.
  const std::string spikes = " train.spike.window=4 train.spike.sigma=0.3 train.spike.action=skip train.spike.most=100";
  const Finished run = shop.train(2, "whole", "parallel.tensor=2" + spikes);
  ASSERT_EQ(run.code, 0) << run.output;
  const std::vector<double> whole = shop.metric("whole", "loss");
  ASSERT_FALSE(shop.metric("whole", "rejected_step").empty()) << run.output;
  const auto back_to_5 = [&](const std::string& name) {
    std::filesystem::copy(shop.path("whole"), shop.path(name), std::filesystem::copy_options::recursive);
    std::filesystem::remove_all(shop.path(name) + "/checkpoints/step-00000010");
  };
  back_to_5("same");
  const Finished same = shop.train(2, "same", "parallel.tensor=2 --resume" + spikes);
  ASSERT_EQ(same.code, 0) << same.output;
  EXPECT_EQ(shop.metric("same", "loss"), whole);  // bit for bit, as the metrics print all digits

  back_to_5("offloaded");
  const Finished offloaded =
      shop.train(2, "offloaded", "parallel.tensor=2 train.offload=optimizer train.check_every=3 --resume" + spikes);
  ASSERT_EQ(offloaded.code, 0) << offloaded.output;
  EXPECT_EQ(shop.metric("offloaded", "loss"), whole);

  back_to_5("cpu");
  const Finished cpu = shop.train(1, "cpu", "train.device=cpu --resume" + spikes);
  ASSERT_EQ(cpu.code, 0) << cpu.output;
  expect_near(whole, shop.metric("cpu", "loss"), relative);

  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("whole") + "/checkpoints/step-00000010").code, 0);
  const std::string sample = " generate.temperature=0 generate.tokens=12 train.device=";
  const Finished on_gpu = shop.choir("generate " + shop.path("whole") + sample + "cuda 2>/dev/null");
  const Finished on_cpu = shop.choir("generate " + shop.path("whole") + sample + "cpu 2>/dev/null");
  EXPECT_EQ(on_gpu.code, 0) << on_gpu.output;
  EXPECT_EQ(on_gpu.output, on_cpu.output);
}

// The double of cuBLASLt adds in another order with number 1.
TEST(GpuRun, TimedProductsGiveTheSameBitsInARunThatGoesOn) {
  const Workshop shop;
  const auto train = [&](const std::string& name, const char* seconds, const std::string& words) {
    setenv("CHOIR_SIMGPU_ALGORITHM_SECONDS", seconds, 1);
    Finished run = shop.train(2, name, "train.time_products=true " + words);
    unsetenv("CHOIR_SIMGPU_ALGORITHM_SECONDS");
    return run;
  };
  const Finished run = train("whole", "2 1 2 2 2 2 2 2", "");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_EQ(count(run, "train.time_products: timed "), 1u) << run.output;
  EXPECT_TRUE(std::filesystem::exists(shop.path("whole") + "/products.txt"));
  const std::vector<double> whole = shop.metric("whole", "loss");
  for (const std::string name : {"same", "other"}) {
    std::filesystem::copy(shop.path("whole"), shop.path(name), std::filesystem::copy_options::recursive);
    std::filesystem::remove_all(shop.path(name) + "/checkpoints/step-00000010");
  }
  const Finished same = train("same", "2 2 1 2 2 2 2 2", "--resume");  // it would choose others
  ASSERT_EQ(same.code, 0) << same.output;
  EXPECT_TRUE(contains(same, "train.time_products: the choices of the checkpoint for ")) << same.output;
  EXPECT_EQ(count(same, "train.time_products: timed "), 0u) << same.output;
  EXPECT_EQ(shop.metric("same", "loss"), whole);
  setenv("CHOIR_SIMGPU_CAPABILITY", "90", 1);
  const Finished other = train("other", "2 1 2 2 2 2 2 2", "--resume");
  unsetenv("CHOIR_SIMGPU_CAPABILITY");
  ASSERT_EQ(other.code, 0) << other.output;
  EXPECT_TRUE(contains(other, "products are timed again when a step is done")) << other.output;
  EXPECT_EQ(count(other, "train.time_products: timed "), 1u) << other.output;
  expect_near(whole, shop.metric("other", "loss"), relative);
}

// The double of cuDNN refuses every graph, as cuDNN refuses some: the run continues with Choir's kernels, and says so.
TEST(GpuRun, Bf16TrainsOnFlashAttentionAndSaysOnceWhyNotOnCudnn) {
  const Workshop shop;
  const Finished run = shop.train(2, "run", "parallel.tensor=2 train.precision=bf16 model.attention.head_width=8");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_EQ(count(run, "attention forward runs on Choir's flash kernel, not on cuDNN"), 1u) << run.output;
  EXPECT_EQ(count(run, "attention backward runs on Choir's flash kernel, not on cuDNN"), 1u) << run.output;
  const std::vector<double> losses = shop.metric("run", "loss");
  EXPECT_LT(losses.back(), losses.front() - 0.1);
  const Finished offloaded =
      shop.train(2, "offloaded",
                 "parallel.zero=2 train.offload=optimizer+activations train.spike.sigma=20 train.precision=bf16 "
                 "model.attention.head_width=8 train.check_every=1");
  ASSERT_EQ(offloaded.code, 0) << offloaded.output;
  expect_near(losses, shop.metric("offloaded", "loss"), 1e-2);

  const Finished only = shop.train(1, "only", "train.precision=bf16 train.attention.implementation=cudnn");
  EXPECT_EQ(only.code, 1);
  EXPECT_TRUE(contains(only, "cuDNN attention forward")) << only.output;
}

// Losses may differ as those of tests/launch/fp8_test.cpp: a sum in another order sends some numbers to the next code.
TEST(GpuRun, Fp8LearnsAsOnTheCpuAndIsRefusedByOtherGenerations) {
  const Workshop shop;
  const std::string words =
      "model.width=32 model.attention.heads=2 model.feed_forward.width=64 train.steps=3 train.precision=fp8 "
      "train.emulate_bf16=true ";
  ASSERT_EQ(shop.train(1, "cpu", words + "train.device=cpu").code, 0);
  const std::vector<double> losses = shop.metric("cpu", "loss");
  const Finished refused = shop.train(1, "refused", words);  // sm_80
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "train.precision = fp8, but rank 0 has ")) << refused.output;
  EXPECT_TRUE(contains(refused, "set train.precision to bf16")) << refused.output;
  setenv("CHOIR_SIMGPU_CAPABILITY", "90", 1);
  for (const int tensor : {1, 2}) {
    const Finished run = shop.train(tensor, "gpu", words + "parallel.tensor=" + std::to_string(tensor));
    EXPECT_EQ(run.code, 0) << run.output;
    const std::vector<double> here = shop.metric("gpu", "loss");
    ASSERT_EQ(here.size(), losses.size());
    for (std::size_t i = 0; i < here.size(); ++i) EXPECT_NEAR(here[i], losses[i], 0.06) << "step " << i + 1;
    EXPECT_FALSE(contains(run, "fp8: ")) << run.output;
    std::filesystem::remove_all(shop.path("gpu"));
  }
  const Finished narrow = shop.train(1, "gpu", "train.precision=fp8 train.emulate_bf16=true train.steps=2");
  EXPECT_EQ(narrow.code, 0) << narrow.output;
  EXPECT_TRUE(contains(narrow, "fp8: 12 weights on this rank multiply in bf16 what numbers of 8 bits stand for"))
      << narrow.output;
  EXPECT_TRUE(contains(narrow, "blocks.0.attention.q.weight [72, 24]")) << narrow.output;
  unsetenv("CHOIR_SIMGPU_CAPABILITY");
}

TEST(GpuRun, AnEncoderGivesTheLossesOfTheCpu) {
  const Workshop shop;
  const std::string model = "model.family=encoder model.vocabulary=258 train.steps=4 ";
  ASSERT_EQ(shop.train(1, "cpu", model + "train.device=cpu").code, 0);
  const std::vector<double> losses = shop.metric("cpu", "loss"), bits = shop.metric("cpu", "bits_per_byte");
  for (const std::string layout : {"parallel.tensor=2", "parallel.context=2"}) {
    const Finished run = shop.train(2, "gpu", model + layout);
    ASSERT_EQ(run.code, 0) << run.output;
    expect_near(losses, shop.metric("gpu", "loss"), relative);
    expect_near(bits, shop.metric("gpu", "bits_per_byte"), relative);
    std::filesystem::remove_all(shop.path("gpu"));
  }
  // In bf16 on the flash kernels, with every pair of a tile and with those of a window on both sides.
  for (const std::string window : {"0", "5"}) {
    const Finished run = shop.train(
        1, "bf16", model + "train.precision=bf16 model.attention.head_width=8 " + "model.attention.window=" + window);
    ASSERT_EQ(run.code, 0) << run.output;
    std::filesystem::remove_all(shop.path("bf16"));
  }
}

TEST(GpuRun, VerifyProvesALayout) {
  const Workshop shop;
  const Finished finished = shop.mpirun(2, "verify " + shop.path("tiny.yaml") + " parallel.tensor=2");
  EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_TRUE(contains(finished, "the layout computes what one rank computes")) << finished.output;
}

TEST(GpuRun, OutOfMemorySaysWhatHoldsItAndWhatHelps) {
  const Workshop shop;
  setenv("CHOIR_SIMGPU_MEMORY", "40000000", 1);  // the workspace of a product alone is 33.6 MB
  const Finished run = shop.train(1, "run", "model.width=192 model.layers=8");
  unsetenv("CHOIR_SIMGPU_MEMORY");
  EXPECT_EQ(run.code, 1) << run.output;
  EXPECT_EQ(count(run, "no memory is left for"), 1u) << run.output;
  EXPECT_TRUE(contains(run, "optimizer state")) << run.output;
  EXPECT_TRUE(contains(run, "fix: ")) << run.output;
}

TEST(GpuRun, DoctorMultipliesOnEveryGpu) {
  const Workshop shop;
  setenv("CHOIR_SIMGPU_DEVICES", "2", 1);
  const Finished doctor = shop.choir("doctor " + shop.path("runs"));
  unsetenv("CHOIR_SIMGPU_DEVICES");
  EXPECT_EQ(doctor.code, 0) << doctor.output;
  EXPECT_EQ(count(doctor, "multiplied two matrices"), 2u) << doctor.output;
}

TEST(GpuRun, BenchesReportAgainstThePeak) {
  const Workshop shop;
  const Finished kernels = shop.choir("bench kernels " + shop.path("tiny.yaml") + " --device cuda");
  EXPECT_EQ(kernels.code, 0) << kernels.output;
  EXPECT_TRUE(contains(kernels, "of peak")) << kernels.output;
  EXPECT_TRUE(contains(kernels, "attention backward")) << kernels.output;
  const Finished collectives = shop.mpirun(2, "bench collectives --device cuda --largest 4096");
  EXPECT_EQ(collectives.code, 0) << collectives.output;
  EXPECT_TRUE(contains(collectives, "all_reduce")) << collectives.output;
}

}  // namespace
}  // namespace choir::tests
