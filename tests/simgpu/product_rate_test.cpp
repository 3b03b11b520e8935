// The yardstick of matrix products on the simulated GPU: timed by its events, products enqueued several at a time.
#include "framework/train/product_rate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

TEST(ProductRate, TimesProductsBetweenEvents) {
  configure({.compute_capability = 90});
  {
    Device device(GpuOptions{}, 1);
    Runtime runtime{.device = device, .compute_type = DType::bf16};
    const std::vector<Ledger::Product> products = {
        {.m = 24, .n = 16, .k = 8, .transpose_b = true, .bf16_in = true, .bf16_out = true, .calls = 2}};
    const double rate = product_rate(runtime, products, 0);
    EXPECT_TRUE(std::isfinite(rate) && rate > 0) << rate;
    std::int64_t launched = 0;
    for (const KernelTraffic& t : traffic())
      if (t.kernel == "cublasLtMatmul") launched += t.launches;
    EXPECT_EQ(launched, 1 + 3 * 8) << "one to warm up, then three times eight";
  }
  for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
}

}  // namespace
}  // namespace choir::simgpu::tests
