// `choir verify` finds mistakes in every precision and names the tensor; in a correct layout it finds none. The
// mistakes are those of the communicators of another program around the same code (planted/faulty_verify.cpp).
#include <gtest/gtest.h>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

/// Four ranks, two heads on each: `choir verify` with a planted mistake, "none" for none.
Finished verify_with(const Workshop& shop, const std::string& fault, const std::string& precision) {
  const std::string words = shop.path("tiny.yaml") +
                            " model.attention.heads=4 model.attention.kv_heads=4 model.width=32 parallel.tensor=2 "
                            "train.emulate_bf16=true train.precision=" +
                            precision;
  return shop.mpirun(4, FAULTY_VERIFY_BINARY, fault + " " + words);
}

TEST(Verify, ProvesALayoutInEveryPrecision) {
  const Workshop shop;
  for (const std::string precision : {"f32", "bf16", "fp8"}) {
    const Finished finished = verify_with(shop, "none", precision);
    EXPECT_EQ(finished.code, 0) << finished.output;
    EXPECT_TRUE(contains(finished, "the layout computes what one rank computes")) << finished.output;
    EXPECT_FALSE(contains(finished, "MISMATCH")) << finished.output;
  }
}

TEST(Verify, NamesTheTensorOfAPlantedFaultInEveryPrecision) {
  const Workshop shop;
  const std::pair<std::string, std::string> faults[] = {
      {"zero:blocks.1.attention.q.weight", "blocks.1.attention.q.weight"},
      {"heads:blocks.1.attention.v.weight", "blocks.1.attention.v.weight"},
      {"missing:blocks.0.attention", "blocks.0.attention.out.weight"},
  };
  for (const auto& [fault, tensor] : faults)
    for (const std::string precision : {"f32", "bf16"}) {
      const Finished finished = verify_with(shop, fault, precision);
      EXPECT_EQ(finished.code, 1) << fault << "\n" << finished.output;
      EXPECT_TRUE(contains(finished, "MISMATCH " + precision + " gradient of " + tensor + ": differs by "))
          << fault << "\n"
          << finished.output;
      EXPECT_TRUE(contains(finished, precision == "f32" ? "; f32): MISMATCH" : "; f32 and bf16): MISMATCH"))
          << finished.output;
    }
}

// Of two ranks' sums one is missing: it is off by 0.7 of what it should be.
TEST(Verify, NamesTheTensorOfAMissingSumInFp8) {
  const Workshop shop;
  const Finished finished = verify_with(shop, "missing:blocks.0.attention", "fp8");
  EXPECT_EQ(finished.code, 1) << finished.output;
  EXPECT_TRUE(contains(finished, "MISMATCH fp8 gradient of blocks.0.attention.out.weight: differs by "))
      << finished.output;
  EXPECT_TRUE(contains(finished, "; f32 and fp8): MISMATCH")) << finished.output;
}

// A fault of one tensor is not reported for the others.
TEST(Verify, NamesNoOtherGradientIfOneIsZero) {
  const Workshop shop;
  const Finished finished = verify_with(shop, "zero:blocks.1.attention.q.weight", "bf16");
  EXPECT_EQ(count(finished, "MISMATCH f32 gradient of "), 1u) << finished.output;
  EXPECT_EQ(count(finished, "MISMATCH bf16 gradient of "), 1u) << finished.output;
}

}  // namespace
}  // namespace choir::tests
