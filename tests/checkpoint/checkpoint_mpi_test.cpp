// Ranks save and load together: in other layouts, if one of them fails, and if checkpoints are damaged.
#include <gtest/gtest.h>
#include <mpi.h>
#include <signal.h>
#include <sys/resource.h>

#include "framework/checkpoint/export.h"
#include "framework/checkpoint/writer.h"
#include "framework/comm/mesh.h"
#include "framework/core/error.h"
#include "tests/checkpoint/shards.h"

namespace choir::tests {
namespace {

int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

struct Job {
  explicit Job(StreamMode mode = StreamMode::threaded)
      : mesh(make_mesh(MPI_COMM_WORLD, {.data = world_size()}, device, ring)), io(mode) {
    std::string name(200, '\0');
    if (rank() == 0) {
      name = (fs::temp_directory_path() / "choir-checkpoint-XXXXXX").string();
      (void)mkdtemp(name.data());
    }
    name.resize(200);
    MPI_Bcast(name.data(), 200, MPI_CHAR, 0, MPI_COMM_WORLD);
    folder = name.c_str();
  }
  ~Job() {
    barrier();
    std::error_code ignored;
    if (rank() == 0) fs::remove_all(folder, ignored);
  }
  int rank() const { return mesh.world->rank(); }
  int size() const { return mesh.world->size(); }
  void barrier() { MPI_Barrier(MPI_COMM_WORLD); }
  CheckpointWriter writer(std::int64_t keep = 0) { return {folder, {.keep = keep}, *mesh.world, io}; }
  SaveOutcome save(CheckpointWriter& writer, std::int64_t step, Cut how) {
    std::vector<Shard> shards = cut(how, rank(), size(), step);
    EXPECT_FALSE(writer.save(step, pieces_of(shards), {{"step", std::to_string(step)}}));
    for (Shard& shard : shards) std::fill(shard.values.begin(), shard.values.end(), -1.f);
    const SaveOutcome outcome = writer.finish().value();
    barrier();
    return outcome;
  }
  std::optional<CheckpointInfo> latest(std::vector<CheckpointInfo>& rejected) {
    return find_latest(folder, *mesh.world, rejected);
  }
  std::int64_t wrong_after_loading(const std::string& path, std::int64_t step, Cut how) {
    std::vector<Shard> shards = cut(how, rank(), size(), -1);
    CheckpointReader(path).read(pieces_of(shards));
    return wrong_elements(shards, step);
  }

  CallRing ring;
  Device device{1};
  Mesh mesh;
  Stream io;
  std::string folder;
};

TEST(Checkpoint, RanksSaveInOneLayoutAndLoadInAnother) {
  for (const StreamMode mode : {StreamMode::immediate, StreamMode::threaded}) {
    Job job(mode);
    CheckpointWriter writer = job.writer();
    std::int64_t step = 0;
    for (const Cut written : all_cuts) {
      const SaveOutcome outcome = job.save(writer, ++step, written);
      ASSERT_TRUE(outcome.saved) << outcome.text;
      EXPECT_EQ(outcome.path, job.folder + "/" + step_name(step));
      EXPECT_EQ(verify_together(outcome.path, *job.mesh.world), "");
      for (const Cut read : all_cuts) EXPECT_EQ(job.wrong_after_loading(outcome.path, step, read), 0);
      EXPECT_EQ(wrong_after_reading(outcome.path, step, Cut::columns, 5), 0) << "by another number of ranks";
    }
  }
}

TEST(Checkpoint, TrainingContinuesWhilePolling) {
  Job job;
  CheckpointWriter writer = job.writer(2);
  std::int64_t saves = 0, outcomes = 0;
  for (std::int64_t step = 1; step <= 60; ++step) {
    std::optional<SaveOutcome> outcome = writer.poll();
    if (step % 10 == 0) {
      std::vector<Shard> shards = cut(Cut::flat, job.rank(), job.size(), step);
      std::optional<SaveOutcome> before = writer.save(step, pieces_of(shards), {});
      EXPECT_FALSE(outcome && before);
      if (before) outcome = before;
      ++saves;
    }
    if (outcome) {
      EXPECT_TRUE(outcome->saved) << outcome->text;
      ++outcomes;
    }
    usleep(1000);
  }
  outcomes += writer.finish() ? 1 : 0;
  EXPECT_EQ(outcomes, saves);
  job.barrier();
  EXPECT_EQ(listing(job.folder), "step-00000050 step-00000060");
  EXPECT_EQ(job.wrong_after_loading(job.folder + "/step-00000060", 60, Cut::rows), 0);
}

TEST(Checkpoint, AFailureOnOneRankFailsTheSaveOnAllRanks) {
  Job job;
  CheckpointWriter writer = job.writer();
  ASSERT_TRUE(job.save(writer, 1, Cut::rows).saved);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, before.rlim_max};
  const int failing = job.size() - 1;
  if (job.rank() == failing) setrlimit(RLIMIT_FSIZE, &small);
  const SaveOutcome bad = job.save(writer, 2, Cut::rows);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(bad.saved);
  EXPECT_TRUE(bad.text.starts_with("rank " + std::to_string(failing) + ": cannot make a file of")) << bad.text;
  EXPECT_NE(bad.text.find("File too large"), std::string::npos) << bad.text;
  EXPECT_EQ(listing(job.folder), "step-00000001");
  job.barrier();
  EXPECT_TRUE(job.save(writer, 3, Cut::rows).saved);
  EXPECT_EQ(listing(job.folder), "step-00000001 step-00000003");
}

TEST(Checkpoint, AnElementThatTwoRanksOwnIsNotSaved) {
  Job job;
  CheckpointWriter writer = job.writer();
  std::vector<float> values(6);
  writer.save(1, {{"w", {2, 3}, 0, 2, 0, 3, 0, 6, values.data()}}, {});
  const SaveOutcome outcome = writer.finish().value();
  EXPECT_EQ(outcome.saved, job.size() == 1);
  if (job.size() > 1) {
    EXPECT_TRUE(outcome.text.starts_with("tensor 'w': ranks 0 and ")) << outcome.text;
  }
}

TEST(Checkpoint, TheNewestWholeCheckpointIsFoundAndTheDamagedOnesAreNamed) {
  Job job;
  std::vector<CheckpointInfo> rejected;
  EXPECT_FALSE(job.latest(rejected));
  CheckpointWriter writer = job.writer();
  for (const int step : {1, 2, 3, 4, 5}) ASSERT_TRUE(job.save(writer, step, Cut::rows).saved);
  const std::string last_shard = "/" + rank_file_name(job.size() - 1);
  const auto at = [&](int step) { return job.folder + "/" + step_name(step); };
  job.barrier();
  if (job.rank() == 0) {
    flip_bit(at(5) + last_shard, bytes_of(at(5) + last_shard).size() - 1);
    set_bytes(at(4) + "/manifest.json", bytes_of(at(4) + "/manifest.json").substr(0, 200));
    fs::copy_file(at(1) + last_shard, at(3) + last_shard, fs::copy_options::overwrite_existing);
  }
  job.barrier();
  const std::optional<CheckpointInfo> found = job.latest(rejected);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->step, 2);
  EXPECT_EQ(found->path, at(2));
  EXPECT_EQ(job.wrong_after_loading(found->path, 2, Cut::columns), 0);
  ASSERT_EQ(rejected.size(), 3u);
  EXPECT_TRUE(rejected[0].problem.starts_with(last_shard.substr(1) + ": tensor ")) << rejected[0].problem;
  EXPECT_TRUE(rejected[1].problem.starts_with("manifest.json: 200 bytes ")) << rejected[1].problem;
  EXPECT_TRUE(rejected[2].problem.starts_with(last_shard.substr(1) + ": tensor ")) << rejected[2].problem;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(rejected[static_cast<std::size_t>(i)].step, 5 - i);
}

TEST(Checkpoint, ExportsOneFile) {
  Job job;
  CheckpointWriter writer = job.writer();
  const SaveOutcome outcome = job.save(writer, 3, Cut::columns_then_flat);
  ASSERT_TRUE(outcome.saved) << outcome.text;
  const std::string out = job.folder + "/export.h5";
  export_checkpoint(outcome.path, out, MPI_COMM_WORLD);
  job.barrier();
  EXPECT_EQ(listing(job.folder), "export.h5 step-00000003");
  {
    const Hdf5Handle file = open_hdf5(out);
    EXPECT_EQ(read_integer_attribute(file, "step"), 3);
    for (const auto& [name, shape] : shapes()) {
      const Hdf5Handle dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose, "H5Dopen2");
      std::vector<float> values(static_cast<std::size_t>(shape[0] * width_of(shape)));
      hdf5_check(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dread");
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < values.size(); ++i)
        wrong += values[i] != value_at(name, static_cast<std::int64_t>(i), 3);
      EXPECT_EQ(wrong, 0) << name;
    }
    const Hdf5Handle text(H5Dopen2(file, "state/step", H5P_DEFAULT), H5Dclose, "H5Dopen2");
    const Hdf5Handle type(H5Dget_type(text), H5Tclose, "H5Dget_type");
    char value[2] = {};
    hdf5_check(H5Dread(text, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value), "H5Dread");
    EXPECT_STREQ(value, "3");
  }
  job.barrier();
  EXPECT_THROW(export_checkpoint(outcome.path, out, MPI_COMM_WORLD), ConfigError) << "the file exists";
  EXPECT_THROW(export_checkpoint(outcome.path, job.folder + "/no/where.h5", MPI_COMM_WORLD), ConfigError);
  EXPECT_THROW(export_checkpoint(job.folder + "/step-00000004", job.folder + "/b.h5", MPI_COMM_WORLD), ConfigError);
  job.barrier();
  if (job.rank() == 0) flip_bit(outcome.path + "/rank-0.h5", 3000);
  job.barrier();
  EXPECT_THROW(export_checkpoint(outcome.path, job.folder + "/b.h5", MPI_COMM_WORLD), ConfigError);
  job.barrier();
  EXPECT_EQ(listing(job.folder), "export.h5 step-00000003");
}

}  // namespace
}  // namespace choir::tests
