// train.cpu_kernels through the program: what is refused, and what a plan names.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/matmul.h"
#include "launch/process.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

const std::string bf16 = " train.precision=bf16 train.emulate_bf16=true train.threads=1";

TEST(CpuKernels, TilesAreRefusedOnAProcessorWithoutThem) {
  if (kernels::cpu::has_tiles()) GTEST_SKIP() << "this processor has tiles";
  const Workshop shop;
  const Finished refused = shop.train(2, "run", bf16 + " train.cpu_kernels=tiles train.steps=1");
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "train.cpu_kernels = tiles, but this processor has no tiles")) << refused.output;
  EXPECT_TRUE(contains(refused, "set train.cpu_kernels to auto or onednn")) << refused.output;
}

TEST(CpuKernels, AutomaticPrefersTilesThenVectors) {
  using enum kernels::CpuUnit;
  const auto chosen = [](CpuKernels kernels, Precision precision, bool has_tiles, bool has_fast_vectors) {
    Config config;
    config.train.device = TrainDevice::cpu;
    config.train.cpu_kernels = kernels;
    config.train.precision = precision;
    return cpu_unit(config, has_tiles, has_fast_vectors);
  };
  for (const bool fast_vectors : {false, true}) {
    const kernels::CpuUnit without = fast_vectors ? vectors : library;
    EXPECT_EQ(chosen(CpuKernels::automatic, Precision::bf16, true, fast_vectors), tiles);
    EXPECT_EQ(chosen(CpuKernels::automatic, Precision::fp8, true, fast_vectors), tiles);
    EXPECT_EQ(chosen(CpuKernels::automatic, Precision::bf16, false, fast_vectors), without);
    EXPECT_EQ(chosen(CpuKernels::automatic, Precision::f32, true, fast_vectors), without);
    for (const bool has_tiles : {false, true}) {
      EXPECT_EQ(chosen(CpuKernels::tiles, Precision::bf16, has_tiles, fast_vectors), tiles);
      EXPECT_EQ(chosen(CpuKernels::tiles, Precision::f32, has_tiles, fast_vectors), library);
      for (const Precision precision : {Precision::f32, Precision::bf16})
        EXPECT_EQ(chosen(CpuKernels::onednn, precision, has_tiles, fast_vectors), library);
    }
  }
}

TEST(CpuKernels, EveryOtherChoiceTrains) {
  const Workshop shop;
  std::vector<std::string> choices = {"auto", "onednn"};
  if (kernels::cpu::has_tiles()) choices.push_back("tiles");
  for (const std::string& choice : choices) {
    const Finished trained = shop.train(2, choice, bf16 + " train.cpu_kernels=" + choice + " train.steps=2");
    EXPECT_EQ(trained.code, 0) << trained.output;
  }
}

// Planning needs no tiles. Products in f32 never run on them.
TEST(CpuKernels, APlanNamesTheChoice) {
  const Workshop shop;
  const auto plan = [&](const std::string& keys) {
    return shop.choir("plan " + shop.path("tiny.yaml") + " --ranks 1" + keys);
  };
  const std::string named = "matrix products and attention of bf16 on tiles",
                    vectors = "matrix products and attention in vectors of AVX-512";
  EXPECT_TRUE(contains(plan(bf16 + " train.cpu_kernels=tiles"), named));
  EXPECT_EQ(contains(plan(bf16), named), kernels::cpu::has_tiles());
  EXPECT_FALSE(contains(plan(bf16 + " train.cpu_kernels=onednn"), named));
  EXPECT_FALSE(contains(plan(" train.threads=1 train.cpu_kernels=tiles"), named));
  EXPECT_EQ(contains(plan(bf16), vectors), !kernels::cpu::has_tiles() && kernels::cpu::has_fast_vectors());
  EXPECT_FALSE(contains(plan(bf16 + " train.cpu_kernels=onednn"), vectors));
  EXPECT_EQ(contains(plan(" train.threads=1"), vectors), kernels::cpu::has_fast_vectors());
}

}  // namespace
}  // namespace choir::tests
