// What ends a run on GPUs and what does not, through the program: a GPU that fails ends the job at once, whatever
// train.timeout is, and a long silence between steps does not.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

/// Sets variables of the environment during its lifetime.
class Environment {
 public:
  Environment(std::initializer_list<std::pair<const char*, std::string>> variables) {
    for (const auto& [name, value] : variables) {
      setenv(name, value.c_str(), 1);
      names_.push_back(name);
    }
  }
  ~Environment() {
    for (const char* name : names_) unsetenv(name);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::vector<const char*> names_;
};

// The timeout is longer than this test may take, so it cannot be what ends the job. Rank 0 waits in the same call.
constexpr char for_ever[] = " train.timeout=36000";

TEST(FailingGpu, ACollectiveThatFailsEndsTheJobAtOnce) {
  const Workshop shop;
  const Environment failure{{"CHOIR_SIMGPU_FAIL_COLLECTIVE", "1:30"}, {"NCCL_DEBUG", "INFO"}};
  const Finished run = shop.train(2, "run", std::string("parallel.tensor=2") + for_ever);
  EXPECT_EQ(run.code, 1) << run.output;
  EXPECT_TRUE(contains(run,
                       "rank 1 of tensor: NCCL on GPU 0: remote process exited or there was a network error: a "
                       "fault that the test requested"))
      << run.output;
  EXPECT_TRUE(contains(run, "ending the job")) << run.output;
  EXPECT_TRUE(contains(run, "NCCL INFO rank 1 of tensor aborts")) << run.output;
}

TEST(FailingGpu, AnOperationThatFailsEndsTheJobAtOnce) {
  const Workshop shop;
  const Environment failure{{"CHOIR_SIMGPU_FAIL_OPERATION", "1:500"}};
  const Finished run = shop.train(2, "run", std::string("parallel.tensor=2") + for_ever);
  EXPECT_EQ(run.code, 1) << run.output;
  EXPECT_TRUE(contains(run, "an illegal memory access was encountered")) << run.output;
}

// Every rank is silent for longer than the timeout after the last call of a GPU has ended and before the next call,
// which would notice that.
TEST(FailingGpu, SilenceBetweenStepsIsNotAHang) {
  const Workshop shop;
  const Environment slow{{"LD_PRELOAD", CHOIR_SLOW_CALLS}, {"SLOW_LOG", "held-out loss"}, {"SLOW_SECONDS", "9"}};
  const Finished run = shop.train(2, "run", "parallel.tensor=2 train.timeout=4 train.steps=2");
  EXPECT_EQ(run.code, 0) << run.output;
  EXPECT_EQ(shop.metric("run", "held_out_loss").size(), 1u);
}

// Rank 0 publishes the checkpoint, and the other ranks wait for it.
TEST(FailingGpu, ASlowDiskIsNotAHang) {
  const Workshop shop;
  const Environment slow{{"LD_PRELOAD", CHOIR_SLOW_CALLS}, {"SLOW_MANIFEST", "1"}, {"SLOW_SECONDS", "9"}};
  const Finished run = shop.train(2, "run", "parallel.tensor=2 train.timeout=4 train.steps=2");
  EXPECT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "saved ")) << run.output;
}

// It sleeps before its work: the stream of the other rank waits for it in a collective call. A checkpoint of every step
// waits for the step: else the sleep could hide behind the step before it, and slow nobody down.
TEST(FailingGpu, ASlowRankIsNamedAndNoOther) {
  const Workshop shop;
  const Finished run = shop.mpirun(2, FAULTY_TRAIN_BINARY,
                                   "slow:1:700 train " + shop.path("tiny.yaml") + " train.folder=" + shop.path("run") +
                                       " train.device=cuda parallel.tensor=2 train.steps=9 train.straggler_every=1 "
                                       "train.evaluate_every=0 checkpoint.every=1");
  EXPECT_EQ(run.code, 0) << run.output;
  const std::vector<double> ranks = shop.metric("run", "slow_rank");
  EXPECT_EQ(ranks, std::vector<double>(ranks.size(), 1));
  EXPECT_TRUE(contains(run, "rank 1 on host ") && contains(run, ":00:00.0) is ")) << run.output;
}

TEST(FailingGpu, TwoRanksOnOneGpuAreRefused) {
  const Workshop shop;
  const Environment one_gpu{{"CHOIR_SIMGPU_SHARED", "1"}};
  const Finished run = shop.train(2, "run", "parallel.tensor=2");
  EXPECT_EQ(run.code, 2) << run.output;
  EXPECT_EQ(count(run, "ranks 0 and 1 on host "), 1u) << run.output;
  EXPECT_TRUE(contains(run, " drive the same GPU, 0000:00:00.0\n")) << run.output;
  EXPECT_TRUE(contains(run, "fix: start one rank for each GPU")) << run.output;
  EXPECT_FALSE(contains(run, "Duplicate GPU")) << run.output;

  const Environment two_gpus{{"CHOIR_SIMGPU_SHARED", "1"}, {"CHOIR_SIMGPU_DEVICES", "2"}};
  const Finished both = shop.train(2, "both", "parallel.tensor=2 train.steps=2");
  EXPECT_EQ(both.code, 0) << both.output;
}

}  // namespace
}  // namespace choir::tests
