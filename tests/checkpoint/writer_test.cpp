// One rank saves: while it changes the tensors, on a full disk, and killed at random moments.
#include "framework/checkpoint/writer.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <random>

#include "framework/comm/counting_communicator.h"
#include "framework/core/error.h"
#include "tests/checkpoint/shards.h"

namespace choir::tests {
namespace {

/// A world of one rank, in which every verb does nothing.
struct OneRank {
  explicit OneRank(StreamMode mode) : io(mode) {}
  CallRing ring;
  Device device{1};
  CountingCommunicator world{{.axis = "world"}, device, ring};
  Stream io;

  std::unique_ptr<CheckpointWriter> writer(const std::string& folder, std::int64_t keep = 0) {
    return std::make_unique<CheckpointWriter>(folder, CheckpointConfig{.keep = keep}, world, io);
  }
};

SaveOutcome save_now(CheckpointWriter& writer, std::int64_t step) {
  std::vector<Shard> shards = cut(Cut::rows, 0, 1, step);
  EXPECT_FALSE(writer.save(step, pieces_of(shards), {{"step", std::to_string(step)}}));
  for (Shard& shard : shards) std::fill(shard.values.begin(), shard.values.end(), -1.f);  // training continues
  return writer.finish().value();
}

class EitherStream : public ::testing::TestWithParam<StreamMode> {};
INSTANTIATE_TEST_SUITE_P(Writer, EitherStream, ::testing::Values(StreamMode::immediate, StreamMode::threaded),
                         [](const auto& mode) {
                           return mode.param == StreamMode::immediate ? "immediate" : "threaded";
                         });

TEST_P(EitherStream, SavesTheTensorsAsTheyWereWhenTheSaveBegan) {
  const TemporaryFolder run;
  OneRank rank(GetParam());
  const auto writer = rank.writer(run / "a/checkpoints", 2);
  EXPECT_FALSE(writer->poll());
  EXPECT_FALSE(writer->finish());
  for (const int step : {1, 2, 3}) {
    const SaveOutcome outcome = save_now(*writer, step);
    EXPECT_TRUE(outcome.saved) << outcome.text;
    EXPECT_EQ(outcome.step, step);
    EXPECT_EQ(outcome.path, run / "a/checkpoints/" + step_name(step));
    EXPECT_EQ(outcome.text, "");
    EXPECT_EQ(verify_checkpoint(outcome.path), std::vector<std::string>{});
    EXPECT_EQ(wrong_after_reading(outcome.path, step, Cut::columns, 3), 0);
  }
  EXPECT_EQ(listing(run / "a/checkpoints"), "step-00000002 step-00000003");
}

TEST(Writer, ASaveWaitsForTheOneBefore) {
  const TemporaryFolder run;
  OneRank rank(StreamMode::threaded);
  const auto writer = rank.writer(run.path());
  std::vector<Shard> shards = cut(Cut::rows, 0, 1, 1);
  EXPECT_FALSE(writer->save(1, pieces_of(shards), {}));
  EXPECT_TRUE(writer->saving());
  const std::optional<SaveOutcome> first = writer->save(2, pieces_of(shards), {});
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->saved);
  EXPECT_EQ(first->step, 1);
  EXPECT_GT(first->waited, 0);
  EXPECT_TRUE(writer->finish()->saved);
  EXPECT_EQ(listing(run.path()), "step-00000001 step-00000002");
}

TEST(Writer, PollingEndsASaveWithoutWaiting) {
  const TemporaryFolder run;
  OneRank rank(StreamMode::threaded);
  const auto writer = rank.writer(run.path());
  std::vector<Shard> shards = cut(Cut::rows, 0, 1, 1);
  writer->save(1, pieces_of(shards), {});
  std::optional<SaveOutcome> outcome;
  while (!(outcome = writer->poll())) usleep(1000);
  EXPECT_TRUE(outcome->saved);
  EXPECT_EQ(outcome->waited, 0);
  EXPECT_FALSE(writer->saving());
}

TEST(Writer, ADestroyedWriterPublishesNothingAndTheNextOneSweeps) {
  const TemporaryFolder run;
  OneRank rank(StreamMode::threaded);
  std::vector<Shard> shards = cut(Cut::rows, 0, 1, 1);
  rank.writer(run.path())->save(1, pieces_of(shards), {});
  EXPECT_EQ(listing(run.path()), "step-00000001.tmp");
  rank.writer(run.path());
  EXPECT_EQ(listing(run.path()), "");
}

TEST_P(EitherStream, ImpossiblePiecesFailTheSaveAndNotTheRun) {
  const TemporaryFolder run;
  OneRank rank(GetParam());
  const auto writer = rank.writer(run.path());
  std::vector<float> values(100);
  writer->save(1, {{"w", {4, 5}, 0, 5, 0, 5, 0, 25, values.data()}}, {});
  const SaveOutcome outcome = writer->finish().value();
  EXPECT_FALSE(outcome.saved);
  EXPECT_EQ(outcome.text,
            "rank 0: tensor 'w' of shape [4, 5]: rows 0 to 5, columns 0 to 5, elements 0 to 25 do not lie inside it");
  EXPECT_EQ(listing(run.path()), "");
  writer->save(2, {{"w", {4, 5}, 0, 4, 0, 5, 0, 20, values.data()}}, {{"path", "\xff"}});
  EXPECT_NE(writer->finish()->text.find("invalid UTF-8"), std::string::npos);
  EXPECT_TRUE(save_now(*writer, 3).saved);
}

TEST(Writer, AFolderThatCannotBeCreatedIsAnError) {
  const TemporaryFolder run;
  set_bytes(run / "file", "x");
  OneRank rank(StreamMode::immediate);
  EXPECT_THROW(rank.writer(run / "file/checkpoints"), SharedError);
}

// Saves must fail with `reason`, leave only the checkpoint before them, whole, and work again afterwards.
void expect_survival(const std::string& folder, StreamMode mode, const std::string& reason,
                     const std::function<void()>& fill, const std::function<void()>& free) {
  OneRank rank(mode);
  const auto writer = rank.writer(folder);
  const SaveOutcome good = save_now(*writer, 1);
  ASSERT_TRUE(good.saved) << good.text;
  fill();
  for (const int step : {2, 3, 4}) {
    const SaveOutcome bad = save_now(*writer, step);
    EXPECT_FALSE(bad.saved);
    EXPECT_NE(bad.text.find(reason), std::string::npos) << bad.text;
    EXPECT_EQ(listing(folder).find("tmp"), std::string::npos) << listing(folder);
    EXPECT_EQ(verify_checkpoint(good.path), std::vector<std::string>{});
  }
  free();
  const SaveOutcome after = save_now(*writer, 5);
  EXPECT_TRUE(after.saved) << after.text;
  EXPECT_EQ(verify_checkpoint(after.path), std::vector<std::string>{});
}

TEST_P(EitherStream, SurvivesAFullDisk) {
  const TemporaryFolder run;
  const std::string disk = run / "disk";
  fs::create_directories(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=2m") != 0)
    GTEST_SKIP() << "needs the right to mount: a small tmpfs stands in for a full disk";
  // Bytes left: none, part of a rank file, all but a page of it, and the rank file but not checkpoint.h5 (-1).
  for (const int left : {0, 4096, 65536, 300000, -1}) {
    const std::string ballast = disk + "/ballast";
    expect_survival(
        disk + "/checkpoints", GetParam(), "No space left on device",
        [&] {
          set_bytes(ballast, std::string(4 << 20, 'x'));  // as much as fits
          const auto full = static_cast<std::int64_t>(fs::file_size(ballast));
          const auto rank_file =
              static_cast<std::int64_t>(fs::file_size(disk + "/checkpoints/step-00000001/rank-0.h5"));
          fs::resize_file(ballast,
                          static_cast<std::uintmax_t>(full - (left < 0 ? (rank_file / 4096 + 1) * 4096 : left)));
        },
        [&] { fs::remove(ballast); });
    fs::remove_all(disk + "/checkpoints");
  }
  ASSERT_EQ(umount(disk.c_str()), 0);
}

TEST_P(EitherStream, SurvivesALimitOnTheSizeOfFiles) {
  const TemporaryFolder run;
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {0, 512, 100000}) {
    expect_survival(
        run / "checkpoints", GetParam(), "File too large",
        [&] {
          const rlimit small{bytes, before.rlim_max};
          setrlimit(RLIMIT_FSIZE, &small);
        },
        [&] { setrlimit(RLIMIT_FSIZE, &before); });
    fs::remove_all(run / "checkpoints");
  }
}

TEST_P(EitherStream, KilledAtARandomMomentEveryPublishedCheckpointIsWhole) {
  const TemporaryFolder run;
  std::mt19937 random(3);
  std::int64_t newest = 0, published = 0;
  for (int kill_number = 0; kill_number < 20; ++kill_number) {
    const pid_t child = fork();
    if (child == 0) {
      omp_set_num_threads(1);
      OneRank rank(GetParam());
      const auto writer = rank.writer(run.path(), 3);
      for (std::int64_t step = newest + 1;; ++step) {
        std::vector<Shard> shards = cut(Cut::rows, 0, 1, step);
        writer->save(step, pieces_of(shards), {{"step", std::to_string(step)}});
        writer->poll();
      }
    }
    ASSERT_GT(child, 0);
    usleep(static_cast<useconds_t>(random() % 120000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    for (const CheckpointInfo& found : list_checkpoints(run.path())) {
      EXPECT_EQ(verify_checkpoint(found.path), std::vector<std::string>{}) << found.path;
      EXPECT_EQ(wrong_after_reading(found.path, found.step, Cut::flat, 2), 0) << found.path;
      EXPECT_EQ(CheckpointReader(found.path).state().at("step"), std::to_string(found.step));
      ++published;
    }
    const std::vector<CheckpointInfo> all = list_checkpoints(run.path());
    if (!all.empty()) {
      EXPECT_GE(all.front().step, newest) << "a published checkpoint was lost";
      newest = all.front().step;
    }
  }
  EXPECT_GT(published, 0) << "no child lived long enough to publish";
  RecordProperty("newest_step", static_cast<int>(newest));
}

}  // namespace
}  // namespace choir::tests
