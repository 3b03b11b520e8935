// What a training step of GPT-2 124M in bf16 costs beside its arithmetic: how often it launches something at 4
// sequences of 1024 tokens, where the time between launches counts, and the bytes that it moves outside of products and
// attention at 64, where bandwidth counts. Nothing is computed: launches are those that the simulated GPU is asked for,
// bytes are the Cost of each operation, which traffic_mpi_test.cpp compares with what the kernels really move.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <set>
#include <string>

#include "framework/comm/counting_communicator.h"
#include "framework/train/plan.h"
#include "framework/train/trainer.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

constexpr std::int64_t most_launches = 319;
constexpr double most_bytes = 39.3e9;

Config gpt2(std::int64_t sequences) {
  Config config;
  config.model.dropout = 0;
  config.model.feed_forward.kind = FeedForwardKind::gelu;
  config.train.batch = sequences;
  config.train.precision = Precision::bf16;
  return config;
}

struct Launches {
  std::int64_t kernels = 0, products = 0;
};

std::map<std::string, Launches> launches_by_label() {
  std::map<std::string, Launches> all;
  for (const KernelTraffic& t : traffic())
    (t.kernel == "cublasLtMatmul" ? all[t.label].products : all[t.label].kernels) += t.launches;
  return all;
}

TEST(StepCost, LaunchesOfGpt2) {
  configure({.compute_capability = 90, .memory_bytes = std::int64_t{80} << 30, .check = false, .computes = false});
  std::map<std::string, Launches> before, after;
  {
    const Config config = gpt2(4);
    Device device(GpuOptions{}, 2);
    CallRing ring;
    Mesh mesh = make_counting_mesh(0, {}, device, ring);
    Trainer trainer(config, device, mesh);
    device.synchronize();
    before = launches_by_label();
    trainer.step(1, [](std::int64_t, const Sample& sample) {
      std::fill(sample.inputs.begin(), sample.inputs.end(), 0);
      std::fill(sample.targets.begin(), sample.targets.end(), 0);
      return std::int64_t{0};
    });
    device.synchronize();
    after = launches_by_label();
  }
  std::printf("%-22s %8s %8s\n", "4 x 1024 tokens", "kernels", "products");
  Launches total;
  for (const auto& [label, launches] : after) {
    const Launches step = {.kernels = launches.kernels - before[label].kernels,
                           .products = launches.products - before[label].products};
    if (step.kernels + step.products > 0)
      std::printf("%-22s %8lld %8lld\n", label.c_str(), static_cast<long long>(step.kernels),
                  static_cast<long long>(step.products));
    total.kernels += step.kernels;
    total.products += step.products;
  }
  std::printf("%-22s %8lld %8lld\n", "all", static_cast<long long>(total.kernels),
              static_cast<long long>(total.products));
  EXPECT_GE(total.products, 12 * 12 + 3) << "four products of a block, and the head's, forward and twice backward";
  EXPECT_LE(total.kernels + total.products, most_launches);
  EXPECT_TRUE(take_findings().empty());
}

// The GPU gets a step while it still has nothing of the two before it done: the host waits for none of their values.
TEST(StepCost, TheHostWaitsForNoStepBeforeTheNextOneIsEnqueued) {
  configure({.compute_capability = 90, .memory_bytes = std::int64_t{80} << 30, .check = false, .computes = false});
  std::atomic<bool> is_open = false, has_waited = false;
  {
    Config config = gpt2(4);
    config.model.layers = 2;
    Device device(GpuOptions{}, 2);
    CallRing ring;
    Mesh mesh = make_counting_mesh(0, {}, device, ring);
    mesh.host_device = std::make_unique<Device>(1);  // as make_mesh() does it
    mesh.host = std::make_unique<CountingCommunicator>(Group{.axis = "host"}, *mesh.host_device, ring);
    Trainer trainer(config, device, mesh);
    const ReadSample read = [](std::int64_t, const Sample& sample) {
      std::fill(sample.inputs.begin(), sample.inputs.end(), 0);
      std::fill(sample.targets.begin(), sample.targets.end(), 0);
      return std::int64_t{0};
    };
    trainer.step(1, read, {}, read);
    device.synchronize();
    // Closed until the host waits for the GPU, or until the steps are enqueued.
    enqueue(device.compute().cuda(), {.name = "gate", .ready = [&] {
                                        if (!is_open && host_waits()) has_waited = is_open = true;
                                        return is_open.load();
                                      }});
    const StepInFlight second = trainer.start_step(2, read, {}, read), third = trainer.start_step(3, read, {}, read);
    EXPECT_FALSE(has_waited);
    is_open = true;
    trainer.finish_step(second);
    trainer.finish_step(third);
  }
  EXPECT_TRUE(take_findings().empty());
}

// Counted and not done: the residual as C of the products that end a branch. "residual forward" would be gone and
// "residual and norm forward" be a norm, 6.0 GB and 12 launches; the products would read 2.4 GB more. But cuBLASLt adds
// only a bias of the result's type, while that of a branch is f32: with a bias, one more rounding than in layouts with
// tensor ranks, with dropout and on the CPU, where the kernel stays.

/// The least that an operation can move in a step: what comes from another operation is read once and what goes to
/// another one is written once, each in its own type; 0 if another operation could do it on its way.
std::map<std::string, double> least_bytes(const ModelConfig& model, double sequences, double parameters) {
  const double rows = sequences * static_cast<double>(model.context), x = 2 * rows * static_cast<double>(model.width);
  const double layers = static_cast<double>(model.layers), norms = 2 * layers + 1;
  return {
      {"fill", 0},                    // what is left is added to by other kernels, which could overwrite
      {"embedding forward", 2 * x},   // rows of the table, rows of x
      {"position forward", 0},        // with the above
      {"embedding backward", 3 * x},  // dy; the sums in f32
      {"position backward", 0},       // with the above, but for a small table
      {"norm forward", 2 * x * (norms - layers)},
      {"residual and norm forward", 4 * x * layers},  // reads the stream and the branch, writes the sum and its norm
      {"residual forward", 2 * x * layers},           // with the norm that follows: reads the branch, writes the sum
      {"norm backward", 4 * x * norms - x},  // dy, x, dx, and the slope of the residual stream; the last has none
      {"bias gradient", 0},                  // with the norm's backward
      {"cross-entropy", 2 * 2 * rows * static_cast<double>(model.vocabulary)},
      {"sum of losses", 0},
      {"gradient norm", 4 * parameters},
      {"optimizer", 30 * parameters},
  };
}

TEST(StepCost, BytesOfGpt2) {
  constexpr std::int64_t sequences = 64;
  const Config config = gpt2(sequences);
  const RankPlan step = count_step(config, {}, 0, {.kind = DeviceKind::cuda}, 1);
  const std::set<std::string> products = {"attention qkv",     "attention out", "feed-forward up",
                                          "feed-forward down", "head",          "attention forward",
                                          "attention backward"};
  const auto least = least_bytes(config.model, sequences, static_cast<double>(step.owned_parameters));
  std::printf("%-22s %8s %8s\n", "64 x 1024 tokens, GB", "moved", "least");
  double moved = 0, needed = 0;
  for (const Ledger::Operation& operation : step.operations) {
    if (products.contains(operation.name) || operation.cost.bytes == 0) continue;
    const auto known = least.find(operation.name);
    ASSERT_NE(known, least.end()) << operation.name << ": say what it needs";
    std::printf("%-22s %8.2f %8.2f\n", operation.name.c_str(), operation.cost.bytes / 1e9, known->second / 1e9);
    moved += operation.cost.bytes;
    needed += known->second;
  }
  std::printf("%-22s %8.2f %8.2f\n", "all", moved / 1e9, needed / 1e9);
  EXPECT_GE(moved, needed);
  EXPECT_LE(moved, most_bytes);
}

}  // namespace
}  // namespace choir::simgpu::tests
