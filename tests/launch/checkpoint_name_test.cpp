// One way to name a checkpoint, for all verbs and train.from: its folder under any name, a run folder, or its
// checkpoints/; damaged ones are passed over, said aloud.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

/// Changes one element of a tensor in place: only the digest shows it.
void damage(const std::string& checkpoint) {
  const std::string victim = checkpoint + "/rank-0.h5";
  std::fstream file(victim, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-100, std::ios::end);
  const char byte = static_cast<char>(file.peek() ^ 0x55);
  file.seekp(-100, std::ios::end);
  file.put(byte);
}

/// A run with checkpoints of steps 5 and 10.
class CheckpointName : public ::testing::Test {
 protected:
  CheckpointName() { EXPECT_EQ(shop.train(1, "run").code, 0); }

  std::string checkpoint(const std::string& step) const { return shop.path("run/checkpoints/step-000000" + step); }
  Finished show(const std::string& path) const { return shop.choir("checkpoint show " + path); }
  /// A new run from the weights that `path` names, which is removed again.
  Finished train_from(const std::string& path) const {
    const Finished finished = shop.train(1, "from", "train.steps=1 optimizer.warmup=0 train.from=" + path);
    fs::remove_all(shop.path("from"));
    return finished;
  }
  /// The outcome of each verb that reads a checkpoint, for `path`.
  std::vector<Finished> verbs(const std::string& path) const {
    std::vector<Finished> all = {show(path), train_from(path), shop.choir("generate " + path + " generate.tokens=1"),
                                 shop.mpirun(2, "evaluate " + path + " --json"),
                                 shop.choir("checkpoint export " + path + " " + shop.path("one.h5"))};
    fs::remove(shop.path("one.h5"));
    return all;
  }

  const Workshop shop;
};

TEST_F(CheckpointName, IsItsFolderUnderAnyNameOrARunFolderOrItsCheckpoints) {
  fs::rename(checkpoint("05"), shop.path("the-best"));
  for (const std::string& path : {shop.path("run"), shop.path("run/checkpoints/"), checkpoint("10") + "/"}) {
    EXPECT_TRUE(contains(show(path), ": step 10, written by 1 rank\n")) << show(path).output;
    const Finished started = train_from(path);
    EXPECT_EQ(started.code, 0) << started.output;
    EXPECT_TRUE(contains(started, "starting from the weights of ")) << started.output;
  }
  for (const Finished& finished : verbs(shop.path("the-best"))) EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_TRUE(contains(show(shop.path("the-best")), ": step 5, "));
}

TEST_F(CheckpointName, OfARunPassesOverADamagedCheckpointAndSaysWhy) {
  damage(checkpoint("10"));
  for (const Finished& finished : verbs(shop.path("run"))) {
    EXPECT_EQ(finished.code, 0) << finished.output;
    EXPECT_EQ(count(finished, "passing over " + checkpoint("10") + ": rank-0.h5: tensor '"), 1u) << finished.output;
  }
  fs::remove(checkpoint("10") + "/manifest.json");
  for (const Finished& finished : {show(shop.path("run/checkpoints")), train_from(shop.path("run/checkpoints"))}) {
    EXPECT_EQ(finished.code, 0) << finished.output;
    EXPECT_EQ(count(finished, "passing over " + checkpoint("10") + ": manifest.json is missing"), 1u)
        << finished.output;
  }
}

TEST_F(CheckpointName, OfADamagedCheckpointIsAnErrorThatSaysWhy) {
  damage(checkpoint("10"));
  for (const Finished& finished : verbs(checkpoint("10"))) {
    EXPECT_EQ(finished.code, 2) << finished.output;
    EXPECT_EQ(count(finished, "choir: "), 1u) << finished.output;
    EXPECT_TRUE(contains(finished, " = " + checkpoint("10") + " is not a whole checkpoint: rank-0.h5: tensor '"))
        << finished.output;
  }
  EXPECT_TRUE(contains(train_from(checkpoint("10")), "choir: train.from = "));
}

TEST_F(CheckpointName, WithoutAWholeCheckpointIsAnErrorThatNamesEachReason) {
  damage(checkpoint("10"));
  fs::resize_file(checkpoint("05") + "/rank-0.h5", 100);
  for (const Finished& finished : verbs(shop.path("run"))) {
    EXPECT_EQ(finished.code, 2) << finished.output;
    EXPECT_TRUE(contains(finished, shop.path("run") + " holds no whole checkpoint\n  why: ")) << finished.output;
    EXPECT_EQ(count(finished, "step-00000010: rank-0.h5: tensor"), 1u) << finished.output;
    EXPECT_EQ(count(finished, "step-00000005: rank-0.h5 has 100 bytes"), 1u) << finished.output;
  }
}

TEST_F(CheckpointName, OfAnUnreadableCheckpointIsAFailureOfTheMachine) {
  fs::remove(checkpoint("10") + "/rank-0.h5");
  fs::create_symlink("rank-0.h5", checkpoint("10") + "/rank-0.h5");  // a loop, which no user can follow, root included
  const Finished passed = show(shop.path("run"));
  EXPECT_EQ(passed.code, 0) << passed.output;
  EXPECT_EQ(count(passed, "passing over " + checkpoint("10") + ": cannot examine rank-0.h5"), 1u) << passed.output;
  fs::remove_all(checkpoint("05"));
  for (const std::string& path : {checkpoint("10"), shop.path("run")}) {
    const Finished finished = show(path);
    EXPECT_EQ(finished.code, 1) << finished.output;
    EXPECT_TRUE(contains(finished, "PATH = " + path)) << finished.output;
    EXPECT_TRUE(contains(finished, "cannot examine rank-0.h5")) << finished.output;
  }
}

TEST_F(CheckpointName, OfSomethingElseIsAnErrorThatSaysWhatItIs) {
  fs::create_directory(shop.path("empty"));
  const std::pair<std::string, std::string> cases[] = {{"nowhere", ": there is no such folder"},
                                                       {"tiny.yaml", ": this is not a folder"},
                                                       {"empty", " holds no checkpoint"}};
  for (const auto& [name, said] : cases)
    for (const Finished& finished : {show(shop.path(name)), train_from(shop.path(name))}) {
      EXPECT_EQ(finished.code, 2) << finished.output;
      EXPECT_TRUE(contains(finished, " = " + shop.path(name) + said + "\n  fix: name the folder of a checkpoint"))
          << finished.output;
    }
}

TEST_F(CheckpointName, OfARunListsAndVerifiesAllOfThem) {
  damage(checkpoint("05"));
  const Finished list = shop.choir("checkpoint list " + shop.path("run"));
  EXPECT_EQ(list.code, 0);
  EXPECT_EQ(list.output, checkpoint("10") + "  whole (by manifest and sizes)\n" + checkpoint("05") +
                             "  whole (by manifest and sizes)\n");
  const Finished verify = shop.choir("checkpoint verify " + shop.path("run"));
  EXPECT_EQ(verify.code, 1);
  EXPECT_TRUE(contains(verify, checkpoint("10") + ": whole, every byte\n")) << verify.output;
  EXPECT_TRUE(contains(verify, checkpoint("05") + ": rank-0.h5: tensor '")) << verify.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + checkpoint("10")).code, 0);
  EXPECT_EQ(shop.choir("checkpoint verify " + checkpoint("05")).code, 1);
  EXPECT_EQ(shop.choir("checkpoint list " + checkpoint("05")).code, 0);
  EXPECT_EQ(shop.choir("checkpoint list " + shop.path("nowhere")).code, 2);
}

}  // namespace
}  // namespace choir::tests
