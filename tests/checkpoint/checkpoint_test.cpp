// Any layout reads what any layout writes; damage is rejected with a reason; other HDF5 programs see the same tensors.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <cmath>

#include "framework/core/error.h"
#include "tests/checkpoint/shards.h"

namespace choir::tests {
namespace {

TEST(Checkpoint, AnyLayoutReadsWhatAnyLayoutWrote) {
  for (const Cut written : all_cuts) {
    for (const int writers : {1, 2, 5}) {
      const TemporaryFolder folder;
      const std::string path = write_checkpoint(folder.path(), 3, written, writers);
      EXPECT_EQ(verify_checkpoint(path), std::vector<std::string>{});
      for (const Cut read : all_cuts)
        for (const int readers : {1, 3})
          EXPECT_EQ(wrong_after_reading(path, 3, read, readers), 0)
              << "cut " << int(written) << " by " << writers << " ranks, read " << int(read) << " by " << readers;
    }
  }
}

TEST(Checkpoint, DigestsOfTensorsAreTheSameForEveryLayout) {
  const TemporaryFolder folder;
  std::vector<std::uint64_t> expected;
  for (const Cut how : all_cuts) {
    for (const int ranks : {1, 2, 3, 4}) {
      const CheckpointReader reader(write_checkpoint(folder.path(), 3, how, ranks));
      std::vector<std::uint64_t> digests;
      for (const NamedShape& tensor : shapes()) digests.push_back(reader.manifest().find(tensor.name)->digest);
      if (expected.empty()) expected = digests;
      EXPECT_EQ(digests, expected) << "cut " << int(how) << ", " << ranks << " ranks";
    }
  }
  const CheckpointReader other(write_checkpoint(folder.path(), 4, Cut::rows, 2));
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NE(other.manifest().find(shapes()[i].name)->digest, expected[i]) << shapes()[i].name;
}

TEST(Checkpoint, DigestChangesWithEveryBitAndWithTheOrder) {
  std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const Piece piece{"a", {2, 3}, 0, 2, 0, 3, 0, 6, values.data()};
  const std::uint64_t whole = digest_of(piece);
  for (float& value : values) {
    for (int bit = 0; bit < 32; ++bit) {
      const float before = value;
      value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) ^ (1u << bit));
      EXPECT_NE(digest_of(piece), whole);
      value = before;
    }
  }
  std::swap(values[0], values[5]);
  EXPECT_NE(digest_of(piece), whole);
}

TEST(Checkpoint, KeepsTheState) {
  const TemporaryFolder folder;
  const State state = {{"config", "model:\n  layers: 12 # \"quoted\" ä\n"},
                       {"data.position", "77"},
                       {"empty", ""},
                       {"large", std::string(200000, 'x')}};
  const CheckpointReader reader(write_checkpoint(folder.path(), 1234567890, Cut::rows, 2, state));
  EXPECT_EQ(reader.state(), state);
  EXPECT_EQ(reader.step(), 1234567890);
  EXPECT_EQ(fs::path(reader.path()).filename(), "step-1234567890");
}

// The floats of a dataset, read as any HDF5 program does.
std::vector<float> read_dataset(const std::string& path, const std::string& name, std::vector<hsize_t>& dims) {
  const Hdf5Handle file = open_hdf5(path);
  const Hdf5Handle dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose, "H5Dopen2");
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "H5Dget_space");
  dims.resize(static_cast<std::size_t>(H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  std::vector<float> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
  hdf5_check(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dread");
  return values;
}

TEST(Checkpoint, OneHdf5FileShowsEveryTensorAsIfItHadNeverBeenSplit) {
  for (const Cut how : all_cuts) {
    const TemporaryFolder folder;
    const std::string file = write_checkpoint(folder.path(), 2, how, 4, {{"config", "a: ä"}}) + "/checkpoint.h5";
    for (const auto& [name, shape] : shapes()) {
      std::vector<hsize_t> dims;
      const std::vector<float> values = read_dataset(file, name, dims);
      ASSERT_EQ(Shape(dims.begin(), dims.end()), shape) << name;
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < values.size(); ++i)
        wrong += values[i] != value_at(name, static_cast<std::int64_t>(i), 2);
      EXPECT_EQ(wrong, 0) << name << ", cut " << int(how);
    }
    const Hdf5Handle opened = open_hdf5(file);
    EXPECT_EQ(read_integer_attribute(opened, "step"), 2);
    const Hdf5Handle text(H5Dopen2(opened, "state/config", H5P_DEFAULT), H5Dclose, "H5Dopen2");
    const Hdf5Handle type(H5Dget_type(text), H5Tclose, "H5Dget_type");
    std::string value(H5Tget_size(type), '?');
    hdf5_check(H5Dread(text, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value.data()), "H5Dread");
    EXPECT_STREQ(value.c_str(), "a: ä");
  }
}

TEST(Checkpoint, AMissingRankFileShowsAsNanAndIsRejected) {
  const TemporaryFolder folder;
  const std::string path = write_checkpoint(folder.path(), 2, Cut::rows, 4);
  fs::remove(path + "/rank-1.h5");
  std::vector<hsize_t> dims;
  std::vector<float> values = read_dataset(path + "/checkpoint.h5", "norm.weight", dims);  // 11 rows: 0 2 5 8 11
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i >= 2 && i < 5) << i;
  EXPECT_EQ(look_at(path).problem, "rank-1.h5 is missing");
  EXPECT_EQ(verify_checkpoint(path), std::vector<std::string>{"rank-1.h5 is missing"});
  EXPECT_THROW(CheckpointReader{path}, ConfigError);
}

TEST(Checkpoint, EveryFlippedBitIsFoundAndItsFileNamed) {
  const TemporaryFolder folder;
  const std::string path = write_checkpoint(folder.path(), 2, Cut::columns_then_flat, 3);
  ASSERT_EQ(verify_checkpoint(path), std::vector<std::string>{});
  for (const std::string name : {"rank-0.h5", "rank-2.h5", "checkpoint.h5", "manifest.json"}) {
    const std::string file = path + "/" + name;
    const std::string bytes = bytes_of(file);
    for (std::size_t byte = 0; byte < bytes.size(); byte += 1 + bytes.size() / 50) {
      flip_bit(file, byte, static_cast<int>(byte % 8));
      const std::vector<std::string> problems = verify_checkpoint(path);
      ASSERT_EQ(problems.size(), 1u) << name << ", byte " << byte;
      EXPECT_TRUE(problems[0].starts_with(name)) << problems[0];
      set_bytes(file, bytes);
    }
  }
  EXPECT_EQ(verify_checkpoint(path), std::vector<std::string>{});
}

TEST(Checkpoint, ADamagedTensorIsNamed) {
  const TemporaryFolder folder;
  const std::string path = write_checkpoint(folder.path(), 2, Cut::rows, 2);
  const CheckpointReader reader(path);
  const StoredPart& part = reader.manifest().find("wide.weight")->parts.back();
  flip_bit(path + "/rank-1.h5", static_cast<std::size_t>(part.offset) + 5);
  const std::vector<std::string> problems = verify_checkpoint(path);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_TRUE(problems[0].starts_with("rank-1.h5: tensor 'wide.weight' is damaged: digest ")) << problems[0];
  EXPECT_EQ(look_at(path).problem, "") << "look_at() reads no elements";
  EXPECT_EQ(verify_checkpoint(path, 0, 2), std::vector<std::string>{}) << "rank 0 of 2 readers has rank-0.h5";
  EXPECT_EQ(verify_checkpoint(path, 1, 2), problems);
}

TEST(Checkpoint, TornAndForeignFilesAreRejected) {
  const TemporaryFolder folder;
  const std::string other = write_checkpoint(folder.path(), 1, Cut::rows, 2);
  const std::string path = write_checkpoint(folder.path(), 2, Cut::rows, 2);
  const auto problem_after = [&](const std::string& name, const std::string& bytes) {
    const std::string before = bytes_of(path + "/" + name);
    set_bytes(path + "/" + name, bytes);
    const std::vector<std::string> problems = verify_checkpoint(path);
    set_bytes(path + "/" + name, before);
    return problems.empty() ? "" : problems[0];
  };
  const std::string shard = bytes_of(path + "/rank-0.h5"), manifest = bytes_of(path + "/manifest.json");
  const std::string size = std::to_string(shard.size());
  EXPECT_EQ(problem_after("rank-0.h5", shard.substr(0, 1000)), "rank-0.h5 has 1000 bytes, the manifest says " + size);
  EXPECT_EQ(problem_after("rank-0.h5", ""), "rank-0.h5 has 0 bytes, the manifest says " + size);
  EXPECT_TRUE(problem_after("rank-0.h5", bytes_of(other + "/rank-0.h5")).starts_with("rank-0.h5: tensor "));
  EXPECT_TRUE(problem_after("rank-0.h5", bytes_of(path + "/rank-1.h5")).starts_with("rank-0.h5"));
  EXPECT_EQ(problem_after("manifest.json", bytes_of(other + "/manifest.json")),
            "manifest.json is of step 1: it belongs to another checkpoint");
  for (std::size_t length = 0; length < manifest.size(); length += 1 + manifest.size() / 40)
    EXPECT_TRUE(problem_after("manifest.json", manifest.substr(0, length)).ends_with("torn or changed")) << length;
  fs::remove(path + "/manifest.json");
  EXPECT_EQ(look_at(path).problem, "manifest.json is missing");
  EXPECT_EQ(look_at(folder / "step-00000009").problem, "there is no such folder");
  try {
    CheckpointReader{folder / "step-00000009"};
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()), (folder / "step-00000009") +
                                             " is not a whole checkpoint\n  why: there is no such folder\n"
                                             "  fix: use another checkpoint: 'choir checkpoint list' lists them");
  }
}

TEST(Checkpoint, ListsTheNewestFirstAndSaysWhatIsDamaged) {
  const TemporaryFolder folder;
  EXPECT_TRUE(list_checkpoints(folder / "nothing").empty());
  for (const int step : {9, 100, 10}) write_checkpoint(folder.path(), step, Cut::rows, 2);
  fs::create_directories(folder / "step-00000500.tmp");
  fs::create_directories(folder / "step-00000600");
  fs::create_directories(folder / "step-7");
  fs::create_directories(folder / "other");
  const std::vector<CheckpointInfo> found = list_checkpoints(folder.path());
  ASSERT_EQ(found.size(), 4u);
  EXPECT_EQ(found[0].step, 600);
  EXPECT_EQ(found[0].problem, "manifest.json is missing");
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(found[i].step, (std::vector{0, 100, 10, 9}[i]));
    EXPECT_EQ(found[i].problem, "");
  }
}

TEST(Checkpoint, NamesAllTensorsThatDifferFromThoseOfTheModel) {
  const TemporaryFolder folder;
  const CheckpointReader reader(write_checkpoint(folder.path(), 2, Cut::rows, 2));
  std::vector<float> values(100);
  const std::vector<Piece> pieces = {{"norm.weight", {12}, 0, 12, 0, 1, 0, 12, values.data()},
                                     {"one.element", {1}, 0, 1, 0, 1, 0, 1, values.data() + 50},
                                     {"nothing", {2, 2}, 0, 2, 0, 2, 0, 4, values.data()}};
  try {
    reader.read(pieces);
    FAIL();
  } catch (const ConfigError& error) {
    ASSERT_EQ(error.problems().size(), 2u);
    EXPECT_EQ(error.problems()[0].what,
              reader.path() + ": tensor 'norm.weight' has shape [11], but the model has [12]");
    EXPECT_EQ(error.problems()[1].what, reader.path() + " has no tensor 'nothing'");
  }
  EXPECT_EQ(values[50], 0) << "nothing is read";
}

TEST(Checkpoint, AnotherCheckpointOfTheSameStepReplacesIt) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), 5, Cut::rows, 4, {{"run", "first"}});
  const std::string path = write_checkpoint(folder.path(), 5, Cut::columns, 2, {{"run", "second"}});
  EXPECT_EQ(listing(folder.path()), "step-00000005");
  EXPECT_EQ(CheckpointReader(path).state().at("run"), "second");
  EXPECT_EQ(verify_checkpoint(path), std::vector<std::string>{});
}

TEST(Checkpoint, ElementsWithTwoOwnersOrNoneAreNotPublished) {
  const auto message = [](std::int64_t end_of_first, std::int64_t begin_of_second) -> std::string {
    const TemporaryFolder folder;
    const std::string temporary = folder / "step-00000001.tmp";
    fs::create_directories(temporary);
    std::vector<float> values(20);
    const auto write = [&](int rank, std::int64_t row_begin, std::int64_t row_end) {
      const Piece piece{"w", {4, 5}, row_begin, row_end, 0, 5, 0, (row_end - row_begin) * 5, values.data()};
      return write_rank_file(temporary, rank, {piece}, {digest_of(piece)});
    };
    Manifest whole = merge({write(0, 0, end_of_first), write(1, begin_of_second, 4)});
    whole.ranks = 2;
    try {
      publish(folder.path(), temporary, whole);
      return listing(folder.path());
    } catch (const Error& error) {
      return std::string(error.what()).substr(0, std::string(error.what()).find('\n'));
    }
  };
  EXPECT_EQ(message(2, 2), "step-00000000");
  EXPECT_EQ(message(3, 2), "tensor 'w': ranks 0 and 1 both own some of its elements");
  EXPECT_EQ(message(2, 3), "tensor 'w': 15 of its 20 elements are owned by a rank");
}

TEST(Checkpoint, PruningKeepsTheNewestWholeCheckpointsAndDamagedOnes) {
  const TemporaryFolder folder;
  for (const int step : {1, 2, 3, 4, 5}) write_checkpoint(folder.path(), step, Cut::rows, 1);
  fs::remove(folder / "step-00000004/rank-0.h5");
  EXPECT_EQ(Retention(folder.path(), {.keep = 0}).prune(), "");
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 5u);
  EXPECT_EQ(Retention(folder.path(), {.keep = 2}).prune(), "");
  EXPECT_EQ(listing(folder.path()), "step-00000003 step-00000004 step-00000005") << "the torn one does not count";
  EXPECT_EQ(Retention(folder.path(), {.keep = 1}).prune(), "");
  EXPECT_EQ(listing(folder.path()), "step-00000004 step-00000005") << "the torn one stays";
}

TEST(Checkpoint, PruningKeepsMilestonesAndTheBest) {
  const TemporaryFolder folder;
  Retention retention(folder.path(), {.keep = 1, .milestones = 3, .best = true});
  const double losses[] = {4, 2, 3, 2.5, 2.25};
  for (const int step : {1, 2, 3, 4, 5}) {
    write_checkpoint(folder.path(), step, Cut::rows, 1);
    retention.add(step, {{"held_out_loss", std::to_string(losses[step - 1])}});
    EXPECT_EQ(retention.prune(), "");
  }
  EXPECT_EQ(listing(folder.path()), "best step-00000002 step-00000003 step-00000005");
  EXPECT_EQ(fs::read_symlink(folder / "best"), "step-00000002");
}

TEST(Checkpoint, ACheckpointSetAsideIsNotInTheRunAndIsNotOverwritten) {
  const TemporaryFolder folder;
  for (const std::string expected : {"step-00000001.aside", "step-00000001.aside-2"}) {
    write_checkpoint(folder.path(), 1, Cut::rows, 1);
    EXPECT_EQ(set_aside(folder / "step-00000001"), folder / expected);
  }
  EXPECT_EQ(listing(folder.path()), "step-00000001.aside step-00000001.aside-2");
  EXPECT_TRUE(list_checkpoints(folder.path()).empty());
}

TEST(Checkpoint, AFailureToReadIsNotDamage) {
  const TemporaryFolder folder;
  const std::string path = write_checkpoint(folder.path(), 1, Cut::rows, 2);
  EXPECT_EQ(look_at(path).condition, Condition::whole);
  const std::string manifest = bytes_of(path + "/manifest.json");
  fs::remove(path + "/rank-1.h5");
  EXPECT_EQ(look_at(path).condition, Condition::damaged);
  fs::create_symlink("rank-1.h5", path + "/rank-1.h5");  // points to itself: the system refuses to open it
  EXPECT_EQ(look_at(path).condition, Condition::unreadable);
  EXPECT_NE(look_at(path).problem.find("Too many levels of symbolic links"), std::string::npos);
  Condition condition = Condition::whole;
  EXPECT_EQ(verify_checkpoint(path, 0, 1, &condition).size(), 1u);
  EXPECT_EQ(condition, Condition::unreadable);

  std::string newer = manifest.substr(0, manifest.rfind("\"end\": \""));
  newer.replace(newer.find("\"version\": 1"), 12, "\"version\": 2");
  set_bytes(path + "/manifest.json", seal(newer));
  EXPECT_EQ(look_at(path).condition, Condition::unreadable);
  EXPECT_NE(look_at(path).problem.find("format version 2"), std::string::npos);
  set_bytes(path + "/manifest.json", newer + manifest.substr(newer.size()));
  EXPECT_EQ(look_at(path).condition, Condition::damaged) << "an unknown version, but the seal is invalid";
}

TEST(Checkpoint, SweepingRemovesOnlyTheRemainsOfAKilledRun) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), 1, Cut::rows, 1);
  for (const char* name : {"step-00000002.tmp", "step-00000003.del", "notes.tmp", "step-x.tmp"}) {
    fs::create_directories(folder / name);
    set_bytes((folder / name) + "/file", "x");
  }
  EXPECT_EQ(sweep(folder.path()), "");
  EXPECT_EQ(listing(folder.path()), "notes.tmp step-00000001 step-x.tmp");
}

}  // namespace
}  // namespace choir::tests
