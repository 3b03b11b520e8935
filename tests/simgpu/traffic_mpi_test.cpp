// What the kernels of a training step read and write in global memory, compared with the least that each operation
// needs: every operand once (Cost of framework/core/ledger.h). Accesses are counted, not cache lines, so the figures
// include what a GPU's caches save. An operation that begins to move more than before fails here.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <string>

#include "tests/simgpu/runtime.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

struct Bytes {
  double read = 0, written = 0;
  double total() const { return read + written; }
};

std::map<std::string, Bytes> moved_by_label() {
  std::map<std::string, Bytes> moved;
  for (const simgpu::KernelTraffic& t : simgpu::traffic()) {
    moved[t.label].read += static_cast<double>(t.bytes_read);
    moved[t.label].written += static_cast<double>(t.bytes_written);
  }
  return moved;
}

/// The most bytes that an operation may move, as a multiple of the least. The rows are short and bf16 is the worst
/// case: what a kernel reads again for each row or thread, from a cache, is a large part.
const std::map<std::string, double> most = {
    {"fill", 2.4},                // each thread looks up its range, and the small model leaves few elements to zero
    {"embedding forward", 1.13},  // the id again for every 16 bytes
    {"embedding backward", 1.6},  // an f32 table is read and written; the ids in each block
    {"position forward", 1.5},    // the table again for every row
    {"position backward", 3.0},   // bf16 gradients into an f32 table, which is read and written
    {"residual forward", 1.84},   // the bias in f32 for every row, the step in every thread
    {"residual backward", 1.25},  // the step in every thread
    {"activation forward", 1.0},
    {"activation backward", 1.0},
    {"norm forward", 4.1},               // mean, variance and result each pass over the row; weight and bias in f32
    {"residual and norm forward", 3.8},  // the same passes over the sum; the bias of the branch for every row
    {"norm backward", 3.4},   // two passes over the row; weight twice, in f32; the partial sums of the columns
    {"cross-entropy", 1.26},  // the target of the row, in every thread
    {"sum of losses", 1.1},
    {"bias gradient", 1.16},  // the partial sums
    {"attention forward", 1.03},
    {"attention backward", 1.77},  // a pass for dq and one for dk and dv
    {"gradient norm", 6.5},        // each thread looks up its range, and the small model gives it few elements
    {"optimizer", 1.5},            // a few thousand threads look up their segments and the scalars
};

void print_and_check(Precision precision) {
  Config config;
  config.model.layers = 1;
  config.model.width = 64;
  config.model.vocabulary = 128;
  config.model.context = 32;
  config.model.attention.heads = 2;
  config.train.batch = 2;
  config.train.precision = precision;
  config.model.dropout = 0.1;
  config.model.feed_forward.kind =
      FeedForwardKind::gelu_erf;  // gelu is fused into the products, which are not kernels of Choir
  simgpu::configure({.compute_capability = 90});

  SmallRun run(MPI_COMM_SELF, config, make_device());
  run.device.synchronize();
  std::map<std::string, Bytes> before = moved_by_label(), after;
  run.device.ledger().enabled = true;
  run.trainer.step(1, read_random(config.model));
  run.device.synchronize();
  after = moved_by_label();

  const bool prints = world_rank() == 0;
  if (prints)
    std::printf("%-5s %-22s %10s %10s %10s %6s\n", name_of(precision), "operation", "read", "written", "least",
                "ratio");
  for (const Ledger::Operation& operation : run.device.ledger().operations()) {
    const Bytes bytes = {.read = after[operation.name].read - before[operation.name].read,
                         .written = after[operation.name].written - before[operation.name].written};
    if (bytes.total() < operation.cost.bytes / 2) continue;  // cuBLASLt's: a kernel of Choir's has rounded the bias
    if (operation.cost.bytes == 0) {
      EXPECT_LE(bytes.total(), 32 * 5 * 8)
          << operation.name << " counts no bytes: each lane of a warp may move five scalars of 8 bytes";
      continue;
    }
    const double ratio = bytes.total() / operation.cost.bytes;
    if (prints)
      std::printf("%-5s %-22s %10.0f %10.0f %10.0f %6.2f\n", name_of(precision), operation.name.c_str(), bytes.read,
                  bytes.written, operation.cost.bytes, ratio);
    const auto limit = most.find(operation.name);
    if (limit == most.end())
      ADD_FAILURE() << operation.name << " has no limit; it moves " << ratio << " times the least in "
                    << name_of(precision);
    else
      EXPECT_LE(ratio, limit->second) << name_of(precision) << ", " << operation.name;
  }
}

TEST(Traffic, OfATrainingStepIsNearTheLeastPossible) {
  print_and_check(Precision::f32);
  print_and_check(Precision::bf16);
}

}  // namespace
}  // namespace choir::tests
