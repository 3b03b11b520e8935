// Device `count` computes nothing, and counts what the CPU counts while it computes: operations, costs, products, and
// the memory at the peak.
#include <gtest/gtest.h>

#include "tests/ops/every_operation.h"

namespace choir::tests {
namespace {

void run(Device& device, DType type) {
  device.ledger().enabled = true;
  Runtime runtime{.device = device, .compute_type = type};
  call_every_operation(runtime);
}

TEST(CountDevice, WritesTheLedgerOfTheCpu) {
  for (const DType type : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(type));
    Device cpu(2), count(CountOnly{DeviceKind::cpu}, 2);
    run(cpu, type);
    run(count, type);
    const auto &computed = cpu.ledger().operations(), &counted = count.ledger().operations();
    ASSERT_GT(counted.size(), 20u) << "a line for each kind of operation";
    ASSERT_EQ(counted.size(), computed.size());
    for (std::size_t i = 0; i < counted.size(); ++i) {
      SCOPED_TRACE(computed[i].name);
      EXPECT_EQ(counted[i].name, computed[i].name);
      EXPECT_EQ(counted[i].cost.flops, computed[i].cost.flops);
      EXPECT_EQ(counted[i].cost.bytes, computed[i].cost.bytes);
      EXPECT_EQ(counted[i].calls, computed[i].calls);
      EXPECT_EQ(counted[i].seconds, 0) << "nothing ran";
      EXPECT_GT(computed[i].seconds, 0) << "the CPU is timed";
    }
    EXPECT_EQ(count.ledger().total_flops(), cpu.ledger().total_flops());
    const auto &made = cpu.ledger().products(), &planned = count.ledger().products();
    ASSERT_EQ(planned.size(), made.size());
    for (std::size_t i = 0; i < planned.size(); ++i) {
      EXPECT_TRUE(planned[i].same_shape(made[i])) << i;
      EXPECT_EQ(planned[i].calls, made[i].calls) << i;
    }
    EXPECT_EQ(count.allocator().at_peak().bytes, cpu.allocator().at_peak().bytes) << "workspaces included";
  }
}

TEST(CountDevice, GivesZerosToTheHostAndReadsNothingFromIt) {
  Device device(CountOnly{}, 1);
  Runtime runtime{.device = device};
  const Tensor x = ops::to_device(runtime, std::vector<float>{1, 2, 3}, DType::f32);
  ops::fill(runtime, x, 7);
  std::vector<float> host{4, 5, 6};
  ops::download(runtime, x, host.data());
  EXPECT_EQ(host, (std::vector<float>{0, 0, 0}));
}

TEST(CountDevice, WritesNothingWhileTheLedgerIsOff) {
  Device device(CountOnly{}, 1);
  Runtime runtime{.device = device};
  call_every_operation(runtime);
  EXPECT_TRUE(device.ledger().operations().empty());
  EXPECT_TRUE(device.ledger().products().empty());
}

TEST(CountDevice, RefusesTheOperandsThatARealDeviceRefuses) {
  Device device(CountOnly{}, 1);
  Runtime runtime{.device = device};
  const Tensor x = runtime.empty({5, 3}, DType::f32), weight = runtime.empty({4, 2}, DType::f32);
  EXPECT_THROW(ops::linear(runtime, "test", x, weight, {}, DType::f32), Error);
  EXPECT_TRUE(device.ledger().operations().empty());
}

}  // namespace
}  // namespace choir::tests
