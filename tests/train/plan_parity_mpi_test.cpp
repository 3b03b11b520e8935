// The plan is the program: a step on device `count` counts the memory and the messages that the step on the CPU has.
#include <gtest/gtest.h>

#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

struct Counted {
  MemoryUse peak;
  std::int64_t offloaded;
  std::vector<std::string> traffic;  // "axis verb messages bytes"
};

/// Of the second step: the first one also fills what is kept.
Counted count_second_step(Trainer& trainer, Device& device, const ModelConfig& model) {
  trainer.step(1, read_random(model));
  device.allocator().reset_peak();
  device.ledger().clear();
  device.ledger().enabled = true;
  trainer.step(2, read_random(model));
  Counted counted{.peak = device.allocator().at_peak(), .offloaded = trainer.offloaded_bytes(), .traffic = {}};
  for (const auto& t : device.ledger().traffic())
    counted.traffic.push_back(t.axis + " " + t.verb + " " + std::to_string(t.messages) + " " + std::to_string(t.bytes));
  return counted;
}

void expect_planned(const Config& config, StreamMode streams) {
  SmallRun run(config, streams);
  const Counted real = count_second_step(run.trainer, run.device, config.model);

  CallRing ring;
  Device device(count_like(run.device), 1);
  Mesh mesh = make_counting_mesh(world_rank(), run.mesh.shape, device, ring);
  Trainer trainer(run.trainer.config(), device, mesh);
  const Counted planned = count_second_step(trainer, device, config.model);
  for (int kind = 0; kind < num_memory_kinds; ++kind)
    EXPECT_EQ(planned.peak.bytes[static_cast<std::size_t>(kind)], real.peak.bytes[static_cast<std::size_t>(kind)])
        << name_of(static_cast<MemoryKind>(kind));
  EXPECT_EQ(planned.traffic, real.traffic);
  EXPECT_EQ(planned.offloaded, real.offloaded);
  EXPECT_EQ(real.offloaded > 0, config.train.offload != Offload::none);
}

// Every other layout keeps optimizer state and saved activations beside the device.
TEST(Plan, CountsTheMemoryAndTheMessagesOfTheRealStep) {
  std::size_t turn = 0;
  for (const SmallModel& model : models_under_test())
    for (Layout layout : layouts(world_size(), model.config)) {
      SCOPED_TRACE(model.name + ", " + layout.name);
      if (turn++ % 2 == 1) layout.offload = Offload::optimizer_and_activations;
      expect_planned(small_config(model.config, safe_adamw(0.01), layout), layout.streams);
    }
}

TEST(Plan, CountsTheScalesThatRanksExchangeInFp8) {
  if (const std::string reason = reason_to_skip_fp8(*make_device()); !reason.empty()) GTEST_SKIP() << reason;
  const ModelConfig model = small_model("five_heads");
  for (const Layout& layout : layouts(world_size(), model)) {
    if (layout.tensor == 1) continue;
    SCOPED_TRACE(layout.name);
    Config config = small_config(model, safe_adamw(0.01), layout);
    config.train.precision = Precision::fp8;
    expect_planned(config, layout.streams);
  }
}

}  // namespace
}  // namespace choir::tests
