// A bit of a weight or of the optimizer's state that flips while a run trains is found, named, and never saved.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

Finished train_with_flip(const Workshop& shop, int ranks, const std::string& fault, const std::string& words) {
  return shop.mpirun(ranks, FAULTY_TRAIN_BINARY,
                     fault + " train " + shop.path("tiny.yaml") + " train.folder=" + shop.path("run") + " " + words);
}

struct Flip {
  int ranks;
  const char* layout;
  const char* fault;  ///< step 6, rank, array, element, bit
  const char* named;  ///< what differs, and where
};
void PrintTo(const Flip& of, std::ostream* to) { *to << of.ranks << " ranks " << of.layout << ' ' << of.fault; }

// In the first bucket, that of the embeddings. Before the update of step 6; without ZeRO other ranks hold the same.
constexpr Flip flips[] = {
    {2, "", "flip:6:1:-1:40:3", "embedding.token.weight on ranks 0 or 1"},
    {4, "parallel.micro_batch=1", "flip:6:2:0:40:30", "optimizer.first_moment.embedding.token.weight on rank 2"},
    {2, "parallel.context=2", "flip:6:0:1:40:20", "optimizer.second_moment.embedding.token.weight on ranks 0 or 1"},
    {2, "parallel.zero=1", "flip:6:1:0:40:9", "optimizer.first_moment.embedding.token.weight on rank 1"},
    {2, "parallel.zero=3 parallel.micro_batch=1", "flip:6:0:-1:40:12", "embedding.token.weight on rank 0"},
    {1, "", "flip:6:0:1:40:25", "optimizer.second_moment.embedding.token.weight on rank 0"},
    {2, "parallel.tensor=2", "flip:6:1:-1:40:0", "embedding.token.weight on rank 1"},
};

class CorruptionInLayout : public ::testing::TestWithParam<Flip> {};

TEST_P(CorruptionInLayout, AFlippedBitIsNamedNotSavedAndTheRunGoesOnFromTheCheckpointBeforeIt) {
  const Flip& flip = GetParam();
  const Workshop shop;
  const std::string words = flip.layout + std::string(" checkpoint.every=5 train.check_every=2");
  ASSERT_EQ(shop.train(flip.ranks, "whole", words).code, 0);
  const Finished run = train_with_flip(shop, flip.ranks, flip.fault, words);
  EXPECT_EQ(run.code, 1) << run.output;
  EXPECT_TRUE(contains(run, "step 6: other bits than they should have: ")) << run.output;
  EXPECT_TRUE(contains(run, flip.named)) << run.output;
  EXPECT_FALSE(fs::exists(shop.path("run") + "/checkpoints/step-00000006"));
  const Finished resumed = shop.train(flip.ranks, "run", words + " --resume");
  EXPECT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "after step 5")) << resumed.output;
  EXPECT_EQ(shop.metric("run", "loss"), shop.metric("whole", "loss"));
}

INSTANTIATE_TEST_SUITE_P(Layouts, CorruptionInLayout, ::testing::ValuesIn(flips));

TEST(Corruption, NothingIsSavedFromRanksThatDiffer) {
  const Workshop shop;
  const Finished run = train_with_flip(shop, 2, "flip:3:1:0:40:12", "checkpoint.every=5");  // no comparison is due
  EXPECT_EQ(run.code, 1) << run.output;
  EXPECT_TRUE(contains(run, "step 5: other bits than they should have: ")) << run.output;
  EXPECT_FALSE(fs::exists(shop.path("run") + "/checkpoints/step-00000005")) << run.output;
}

TEST(Corruption, IsNotLookedForIfTheUserSaysSo) {
  const Workshop shop;
  const Finished run = train_with_flip(shop, 2, "flip:3:1:0:40:12", "checkpoint.every=5 train.check_every=0");
  EXPECT_EQ(run.code, 0) << run.output;
}

}  // namespace
}  // namespace choir::tests
