// The guarantees of a run folder: nothing published is lost, one run at a time, and a refused start changes nothing.
#include <gtest/gtest.h>
#include <signal.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "framework/checkpoint/manifest.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

std::string checkpoint(const Workshop& shop, const std::string& run, int step) {
  return shop.path(run) + "/checkpoints/step-" + (step < 10 ? "0000000" : "000000") + std::to_string(step);
}

/// The names in a folder, ascending.
std::vector<std::string> listing(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Every file below a folder, with its contents and time of change.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    std::string& text = files[entry.path().string()];
    if (!entry.is_regular_file()) continue;
    text = read(entry.path().string()) + std::to_string(fs::last_write_time(entry.path()).time_since_epoch().count());
  }
  return files;
}

void flip_last_byte(const std::string& path) {
  std::string bytes = read(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The environment for tests/launch/faults: calls of `call` on files whose path contains `part`.
std::string fault(const std::string& call, const std::string& part, const std::string& what) {
  return "export LD_PRELOAD=" CHOIR_TEST_FAULTS " FAULT_CALL=" + call + " FAULT_PATH=" + part + " " + what + "; ";
}

std::string fail_with(int reason) { return "FAULT_ERRNO=" + std::to_string(reason); }

/// `choir train` in one process without mpirun, with an environment.
Finished train_alone(const Workshop& shop, const std::string& run, const std::string& arguments,
                     const std::string& environment = "") {
  return shell(environment + shop.train_command_alone(run, arguments));
}

TEST(Resume, UnreadableCheckpointsEndTheStartAndStay) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const auto before = contents(shop.path("run"));
  const Finished refused =
      train_alone(shop, "run", "--resume train.steps=12", fault("pread", "/checkpoints/", fail_with(EIO)));
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_TRUE(contains(refused, "the last of step 10, but none of them can be used")) << refused.output;
  for (const int step : {5, 10}) EXPECT_TRUE(contains(refused, checkpoint(shop, "run", step) + ": ")) << refused.output;
  EXPECT_TRUE(contains(refused, "Input/output error")) << refused.output;
  EXPECT_TRUE(contains(refused, "make them readable")) << refused.output;
  auto after = contents(shop.path("run"));
  after[shop.path("run") + "/run.lock"] = before.at(shop.path("run") + "/run.lock");  // names its last holder
  EXPECT_EQ(after, before);
  const Finished later = train_alone(shop, "run", "--resume train.steps=12");
  EXPECT_EQ(later.code, 0) << later.output;
  EXPECT_TRUE(contains(later, "after step 10")) << later.output;
}

TEST(Resume, AnUnreadableNewestCheckpointIsNotSkipped) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "run", "parallel.tensor=2").code, 0);
  const std::vector<double> losses = shop.metric("run", "loss");
  const Finished refused = shell(fault("pread", "step-00000010/rank-1.h5", fail_with(ESTALE)) +
                                 shop.train_command(2, "run", "parallel.tensor=2 --resume"));
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_TRUE(contains(refused, "has newer checkpoints that cannot be read")) << refused.output;
  EXPECT_TRUE(contains(refused, "--resume=5")) << refused.output;
  EXPECT_EQ(count(refused, "choir: "), 1u) << refused.output;

  const Finished resumed = shop.train(2, "run", "parallel.tensor=2 --resume=5");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(shop.metric("run", "loss"), losses);
  EXPECT_EQ(shop.choir("checkpoint verify " + checkpoint(shop, "run", 10)).code, 0);
  EXPECT_EQ(shop.choir("checkpoint verify " + checkpoint(shop, "run", 10) + ".aside").code, 0);
  EXPECT_EQ(read(shop.path("run") + "/metrics.1.jsonl").find("\"step\":10") == std::string::npos, false);
}

TEST(Resume, ACheckpointOfANewerFormatIsNotSkipped) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const std::string path = checkpoint(shop, "run", 10) + "/manifest.json";
  std::string text = read(path);
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  std::ofstream(path) << seal(text.substr(0, text.rfind("\"end\": \"")));
  const Finished refused = train_alone(shop, "run", "--resume");
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_TRUE(contains(refused, "format version 2, but this program reads version 1")) << refused.output;
}

TEST(Resume, DamagedCheckpointsAreKeptAndAreNotTreatedAsNone) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  for (const int step : {5, 10}) flip_last_byte(checkpoint(shop, "run", step) + "/rank-0.h5");
  const std::string metrics = read(shop.path("run") + "/metrics.jsonl");
  const Finished refused = train_alone(shop, "run", "--resume train.steps=12");
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_TRUE(contains(refused, "none of them can be used")) << refused.output;
  EXPECT_EQ(read(shop.path("run") + "/metrics.jsonl"), metrics);
  EXPECT_EQ(listing(shop.path("run") + "/checkpoints"),
            (std::vector<std::string>{"best", "step-00000005", "step-00000010"}));
}

TEST(Resume, ADamagedNewestCheckpointIsSetAsideAndNeitherReplacedNorPruned) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  flip_last_byte(checkpoint(shop, "run", 10) + "/rank-0.h5");
  const std::string evidence = read(checkpoint(shop, "run", 10) + "/rank-0.h5");
  const Finished resumed = train_alone(shop, "run", "--resume train.steps=20 checkpoint.keep=1 checkpoint.best=false");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "rejected " + checkpoint(shop, "run", 10))) << resumed.output;
  EXPECT_EQ(read(checkpoint(shop, "run", 10) + ".aside/rank-0.h5"), evidence);
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
}

TEST(Resume, AnEmptyCheckpointFolderOfARunThatHasPublishedIsAnError) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const std::string metrics = read(shop.path("run") + "/metrics.jsonl");
  fs::rename(shop.path("run") + "/checkpoints", shop.path("elsewhere"));
  fs::create_directory(shop.path("run") + "/checkpoints");
  const Finished refused = train_alone(shop, "run", "--resume");
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_TRUE(contains(refused, "is its file system mounted?")) << refused.output;
  const Finished fresh = train_alone(shop, "run", "");
  EXPECT_EQ(fresh.code, 2) << fresh.output;
  EXPECT_TRUE(contains(fresh, "already holds a run, at step 10")) << fresh.output;
  EXPECT_EQ(read(shop.path("run") + "/metrics.jsonl"), metrics);
}

TEST(Resume, AJobKilledBeforeItsFirstCheckpointBeginsAgainAndKeepsItsMetrics) {
  const Workshop shop;
  const pid_t child = start(shop.train_command_alone("run", "train.steps=100000 checkpoint.every=0"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 3)) << read(shop.path("log"));
  kill(child, SIGKILL);
  wait_for(child);
  const Finished resumed = train_alone(shop, "run", "--resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "no checkpoint has been published in " + shop.path("run") + ": starting at step 1"))
      << resumed.output;
  EXPECT_TRUE(contains(resumed, "metrics.jsonl as " + shop.path("run") + "/metrics.1.jsonl")) << resumed.output;
  EXPECT_NE(read(shop.path("run") + "/metrics.1.jsonl").find("\"step\":3,"), std::string::npos);
  EXPECT_EQ(shop.metric("run", "loss").size(), 10u);
}

TEST(Resume, TheRecordKeepsItsIdAndWhatWasPublished) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const auto record = [&] { return nlohmann::json::parse(read(shop.path("run") + "/run.json")); };
  const std::string id = record()["id"];
  const pid_t child =
      start(shop.train_command_alone("run", "--resume train.steps=100000 checkpoint.every=0"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 12)) << read(shop.path("log"));
  kill(child, SIGKILL);
  wait_for(child);
  EXPECT_EQ(record()["id"], id);
  EXPECT_EQ(record()["published"], 10);
}

TEST(Resume, ARunWithoutARecordContinuesIfACheckpointIsWhole) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  fs::remove(shop.path("run") + "/run.json");
  EXPECT_EQ(train_alone(shop, "run", "--resume train.steps=12").code, 0);
  EXPECT_EQ(nlohmann::json::parse(read(shop.path("run") + "/run.json"))["published"], 12);
  fs::remove(shop.path("run") + "/run.json");
  for (const int step : {5, 10, 12}) flip_last_byte(checkpoint(shop, "run", step) + "/rank-0.h5");
  EXPECT_EQ(train_alone(shop, "run", "--resume train.steps=14").code, 1);
}

TEST(Resume, TheErrorForAMissingStepListsTheExistingOnes) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const Finished refused = train_alone(shop, "run", "--resume=7");
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "has no checkpoint of step 7\n  fix: it has those of steps 10, 5")) << refused.output;
  EXPECT_EQ(train_alone(shop, "run", "--resume=soon").code, 2);
  const Finished empty = train_alone(shop, "run", "--resume=");
  EXPECT_EQ(empty.code, 2) << empty.output;
  EXPECT_TRUE(contains(empty, "choir: --resume= has no value\n")) << empty.output;
}

TEST(Resume, ChangedValuesAreReportedWithOldAndNewValue) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  const Finished resumed = train_alone(
      shop, "run", "--resume train.steps=20 train.batch=8 model.dropout=0 optimizer.kind=sgd optimizer.momentum=0.9");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  for (const char* words : {"train.steps = 20, was 10\n", "train.batch = 8, was 4\n", "model.dropout = 0, was 0.1\n",
                            "optimizer.kind = sgd, was adamw\n", "the learning rate changes: 0.0003 in step 10, 0.00",
                            "the checkpoint has no momentum of optimizer.kind = sgd: it starts at zero\n"})
    EXPECT_TRUE(contains(resumed, words)) << words << "\n" << resumed.output;
  const Finished shown = shop.choir("checkpoint show " + shop.path("run"));
  EXPECT_TRUE(contains(shown, "samples: 120\n")) << "10 steps of 4 and 10 of 8\n" << shown.output;
  EXPECT_TRUE(contains(shown, "optimizer_origin: 10\n")) << shown.output;

  // Back to AdamW: its moments start at zero, and so do their bias corrections; without those the first updates would
  // be much too small.
  const Finished back = train_alone(shop, "run", "--resume train.steps=21 optimizer.kind=adamw optimizer.moments=bf16");
  ASSERT_EQ(back.code, 0) << back.output;
  EXPECT_TRUE(contains(back, "the checkpoint has no first_moment and second_moment of optimizer.kind = adamw"));
  EXPECT_TRUE(contains(back, "optimizer.moments = bf16, was f32\n")) << back.output;
  EXPECT_TRUE(contains(shop.choir("checkpoint show " + shop.path("run")), "optimizer_origin: 20\n"));
}

TEST(Resume, MoreStepsWithAConstantRateReportNoChangeOfTheRate) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "optimizer.schedule=constant").code, 0);
  const Finished resumed = train_alone(shop, "run", "--resume train.steps=12 optimizer.schedule=constant");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "train.steps = 12, was 10")) << resumed.output;
  EXPECT_FALSE(contains(resumed, "the learning rate changes")) << resumed.output;
}

TEST(Resume, AChangedRateInTheMiddleIsReportedBesideTheUnchangedOne) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "optimizer.schedule=linear optimizer.final_rate=0").code, 0);
  const Finished resumed = train_alone(
      shop, "run", "--resume=5 optimizer.schedule=linear optimizer.final_rate=0 optimizer.rate=4e-3 train.steps=10");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  // Warmup to step 2, then a fall over 8 steps: half of the rate is left in step 6.
  EXPECT_TRUE(contains(resumed, " in step 5, 0.002 in step 6 (0.0015 without these changes)\n")) << resumed.output;
}

TEST(Resume, ModelTokensHeldOutShareAndSeedMayNotDiffer) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  for (const std::string key : {"model.norm.epsilon=1e-6", "data.held_out=0.1", "train.seed=2"}) {
    const Finished refused = train_alone(shop, "run", "--resume train.steps=12 " + key);
    EXPECT_EQ(refused.code, 2) << refused.output;
    EXPECT_TRUE(contains(refused, key.substr(0, key.find('='))) && contains(refused, "but the run was started with"))
        << refused.output;
  }
  const std::string other = "data.path=" + shop.path("other.h5");
  ASSERT_EQ(shop.choir("prepare " + shop.path("tiny.yaml") + " " + shop.path("text-[0-3]") + " " + other).code, 0);
  const Finished refused = train_alone(shop, "run", "--resume train.steps=12 " + other);
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "other.h5 holds other data than the run was started with")) << refused.output;
}

TEST(Resume, AfterANonFiniteLossTheAdviceWorks) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "train.steps=5 optimizer.kind=sgd").code, 0);
  const Finished diverged =
      train_alone(shop, "run", "--resume optimizer.kind=sgd optimizer.rate=1e30 optimizer.clip=0");
  EXPECT_EQ(diverged.code, 3) << diverged.output;
  EXPECT_TRUE(contains(diverged, "go on from the checkpoint of step 5 with --resume and a lower optimizer.rate"))
      << diverged.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).output,
            checkpoint(shop, "run", 5) + ": whole, every byte\n");
  const Finished resumed = train_alone(shop, "run", "--resume optimizer.kind=sgd optimizer.rate=1e-4 optimizer.clip=0");
  EXPECT_EQ(resumed.code, 0) << resumed.output;
}

TEST(Resume, AfterANonFiniteLossInTheFirstStepTheAdviceIsNotALowerRateAlone) {
  const Workshop shop;
  const std::string sgd = "optimizer.kind=sgd optimizer.clip=0 optimizer.warmup=0 checkpoint.every=1 ";
  ASSERT_EQ(train_alone(shop, "run", sgd + "train.steps=1 optimizer.schedule=constant").code, 0);
  // The update of step 2 is much too large: the checkpoint of step 2 gives no finite loss.
  const std::string much = "train.steps=9 optimizer.rate=1e30 --resume";
  const Finished diverged = train_alone(shop, "run", sgd + much);
  EXPECT_EQ(diverged.code, 3) << diverged.output;
  EXPECT_TRUE(contains(diverged, "step 3: the loss is nan, the gradient norm nan")) << diverged.output;
  EXPECT_TRUE(contains(diverged, "go on from the checkpoint of step 2 with --resume and a lower")) << diverged.output;
  const std::string lower = "train.steps=9 optimizer.rate=1e-4 --resume";
  const Finished again = train_alone(shop, "run", sgd + lower);
  EXPECT_EQ(again.code, 3) << again.output;
  EXPECT_TRUE(contains(again, "the weights of the checkpoint of step 2 lead to it")) << again.output;
  EXPECT_TRUE(contains(again, "go on from an earlier checkpoint with --resume=STEP")) << again.output;
  fs::remove_all(checkpoint(shop, "run", 1));
  EXPECT_TRUE(contains(train_alone(shop, "run", sgd + lower), "start a new run in another train.folder"));
  const Finished earlier = train_alone(shop, "fresh", "model.initial_deviation=1e38 optimizer.clip=0");
  EXPECT_EQ(earlier.code, 3) << earlier.output;
  EXPECT_TRUE(contains(earlier, "set a smaller model.initial_deviation")) << earlier.output;
}

TEST(Resume, AnEvaluationThatAStopHasPreventedIsDoneAfterResume) {
  const Workshop shop;
  const std::string stop = fault("pwrite", "/metrics.jsonl", "FAULT_SIGNAL=" + std::to_string(SIGUSR1) + " FAULT_AT=");
  // A stop in the last step, whose line is the tenth.
  const std::string at_10 = stop.substr(0, stop.size() - 2) + "10; ";
  EXPECT_EQ(train_alone(shop, "last", "", at_10).code, 75);
  EXPECT_EQ(shop.metric("last", "bits_per_byte").size(), 0u);
  for (int again = 0; again < 2; ++again) {
    const Finished resumed = train_alone(shop, "last", "--resume");
    EXPECT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_EQ(shop.metric("last", "bits_per_byte").size(), 1u) << resumed.output;
  }
  // A stop in an earlier step: lines 1 to 3 are steps.
  const std::string at_3 = stop.substr(0, stop.size() - 2) + "3; ";
  EXPECT_EQ(train_alone(shop, "between", "train.evaluate_every=3", at_3).code, 75);
  EXPECT_EQ(shop.metric("between", "bits_per_byte").size(), 0u);
  EXPECT_EQ(train_alone(shop, "between", "train.evaluate_every=3 --resume").code, 0);
  EXPECT_EQ(shop.metric("between", "bits_per_byte").size(), 4u) << "steps 3, 6, 9 and 10";
}

/// The number before " held-out sequences" in what `choir train` prints.
std::int64_t held_out_sequences(const Finished& finished) {
  const std::size_t end = finished.output.find(" held-out sequences");
  if (end == std::string::npos) return -1;
  return std::stoll(finished.output.substr(finished.output.rfind(' ', end - 1) + 1));
}

TEST(Resume, ARunGoesOnWithItsOwnSplitAndAnOldOneWithTheOldRule) {
  const Workshop shop;  // five documents of nearly equal size: a twentieth of the text is a quarter of the last one
  const Finished fresh = train_alone(shop, "run", "data.held_out=0.05");
  ASSERT_EQ(fresh.code, 0) << fresh.output;
  const Finished resumed = train_alone(shop, "run", "data.held_out=0.05 train.steps=11 --resume");
  EXPECT_EQ(held_out_sequences(resumed), held_out_sequences(fresh)) << resumed.output;

  // A checkpoint from before runs wrote where they had split: whole documents were held out.
  const std::string path = checkpoint(shop, "run", 11) + "/manifest.json";
  std::string text = read(path);
  const std::size_t begin = text.find("\"first_held_out_token\"");
  ASSERT_NE(begin, std::string::npos) << text;
  text.erase(begin, text.find('\n', begin) - begin);
  std::ofstream(path) << seal(text.substr(0, text.rfind("\"end\": \"")));
  const Finished old = train_alone(shop, "run", "data.held_out=0.05 train.steps=12 --resume");
  ASSERT_EQ(old.code, 0) << old.output;
  EXPECT_GT(held_out_sequences(old), 3 * held_out_sequences(fresh)) << old.output;
  const Finished evaluated = shop.choir("evaluate " + shop.path("run"));
  EXPECT_TRUE(contains(evaluated, " of " + std::to_string(held_out_sequences(old)) + " sequences")) << evaluated.output;
}

TEST(Resume, ARunIsEvaluatedFromAnyFolder) {
  const Workshop shop;
  const Finished trained = shell("cd " + shop.folder() + "; " + shop.train_command_alone("run", "data.path=tokens.h5"));
  ASSERT_EQ(trained.code, 0) << trained.output;
  const Finished evaluated = shell("cd /; " CHOIR_BINARY " evaluate " + shop.path("run"));
  EXPECT_EQ(evaluated.code, 0) << evaluated.output;
}

TEST(RunFolder, ARefusedSecondStartChangesNothingOfTheRunningOne) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "run", "parallel.tensor=2 train.steps=2").code, 0);  // it has published a checkpoint
  const pid_t child =
      start(shop.train_command(2, "run", "parallel.tensor=2 train.steps=100000 checkpoint.every=0 --resume"),
            shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 5)) << read(shop.path("log"));
  kill(-child, SIGSTOP);
  for (const pid_t rank : {process_of_rank(child, 0), process_of_rank(child, 1)}) kill(rank, SIGSTOP);
  fs::create_directory(shop.path("run") + "/checkpoints/step-00000999.tmp");  // an unfinished save
  const auto before = contents(shop.path("run"));
  for (const std::string arguments : {"", "--resume", "parallel.tensor=2 --resume"}) {
    const Finished refused = shop.train(arguments.starts_with("parallel") ? 2 : 1, "run", arguments);
    EXPECT_EQ(refused.code, 2) << refused.output;
    EXPECT_TRUE(contains(refused, "train.folder = " + shop.path("run") + " is in use: process ")) << refused.output;
    EXPECT_TRUE(contains(refused, " on host ")) << refused.output;
  }
  EXPECT_EQ(contents(shop.path("run")), before);
  for (const pid_t rank : {process_of_rank(child, 0), process_of_rank(child, 1)}) kill(rank, SIGCONT);
  kill(-child, SIGCONT);
  kill(child, SIGUSR1);
  EXPECT_EQ(wait_for(child), 75) << read(shop.path("log"));
  EXPECT_EQ(shop.train(2, "run", "parallel.tensor=2 train.steps=2 --resume").code, 0)
      << "the lock is released with the run";
}

TEST(RunFolder, OneOfSeveralConcurrentStartsRuns) {
  const Workshop shop;
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i)
    children.push_back(
        start(shop.train_command_alone("run", "train.steps=100000"), shop.path("log-") + std::to_string(i)));
  std::vector<pid_t> running = children;
  for (int tries = 0; tries < 1200 && running.size() > 1; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    for (std::size_t i = 0; i < children.size(); ++i) {
      siginfo_t end = {};
      const bool ended = waitid(P_PID, static_cast<id_t>(children[i]), &end, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                         end.si_pid == children[i];
      if (ended) std::erase(running, children[i]);
    }
  }
  ASSERT_EQ(running.size(), 1u);
  ASSERT_TRUE(reach(shop, "run", 3));
  kill(running.front(), SIGTERM);
  for (std::size_t i = 0; i < children.size(); ++i)
    EXPECT_EQ(wait_for(children[i]), children[i] == running.front() ? 75 : 2)
        << read(shop.path("log-") + std::to_string(i));
  std::vector<double> steps = shop.metric("run", "step");
  EXPECT_TRUE(std::adjacent_find(steps.begin(), steps.end(), std::greater_equal<>()) == steps.end());
}

TEST(RunFolder, AStartThatIsRefusedLeavesNoFolder) {
  const Workshop shop;
  for (const std::string arguments : {"data.path=nowhere.h5", "model.vocabulary=100", "model.context=100000",
                                      "train.from=nothing", "parallel.tensor=2", "--resume=3"}) {
    const Finished refused = train_alone(shop, "new/run", arguments);
    EXPECT_EQ(refused.code, 2) << arguments << "\n" << refused.output;
    EXPECT_FALSE(fs::exists(shop.path("new"))) << arguments;
  }
}

TEST(RunFolder, AFolderThatCannotBeMadeGivesTheSystemsReason) {
  const Workshop shop;
  const Finished refused = train_alone(shop, "text-0/run", "");
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "text-0/run cannot be written: Not a directory")) << refused.output;
}

TEST(RunFolder, MetricsOfAFullDiskWaitUntilThereIsRoom) {
  const Workshop shop;
  const std::string full = shop.path("full"), flag = "FAULT_WHILE=" + full + " " + fail_with(ENOSPC);
  std::ofstream(full) << "x";
  const pid_t child = start(fault("pwrite", "/metrics.jsonl", flag) +
                                shop.train_command_alone("run", "train.steps=100000 checkpoint.every=0"),
                            shop.path("log"));
  for (int tries = 0; tries < 600 && read(shop.path("log")).find("wait in memory") == std::string::npos; ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(read(shop.path("run") + "/metrics.jsonl"), "");
  fs::remove(full);
  ASSERT_TRUE(reach(shop, "run", 5)) << read(shop.path("log"));
  kill(child, SIGUSR1);
  EXPECT_EQ(wait_for(child), 75) << read(shop.path("log"));
  const std::string said = read(shop.path("log"));
  EXPECT_NE(said.find("No space left on device"), std::string::npos) << said;
  EXPECT_NE(said.find("can be written again"), std::string::npos) << said;
  EXPECT_EQ(said.find("wait in memory"), said.rfind("wait in memory")) << "must be reported once\n" << said;
  const std::vector<double> steps = shop.metric("run", "step");
  for (std::size_t i = 0; i < steps.size(); ++i) ASSERT_EQ(steps[i], static_cast<double>(i + 1));
}

TEST(RunFolder, MetricsThatCouldNotBeWrittenFailTheRun) {
  const Workshop shop;
  const Finished finished = train_alone(shop, "run", "", fault("pwrite", "/metrics.jsonl", fail_with(ENOSPC)));
  EXPECT_EQ(finished.code, 1) << finished.output;
  EXPECT_TRUE(contains(finished, "metrics.jsonl: 11 lines are missing: ")) << finished.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
}

TEST(RunFolder, AConfigurationThatCannotBeWrittenFailsTheStart) {
  const Workshop shop;
  const Finished finished = train_alone(shop, "run", "", fault("pwrite", "/config.yaml", fail_with(ENOSPC)));
  EXPECT_EQ(finished.code, 1) << finished.output;
  EXPECT_TRUE(contains(finished, "config.yaml.tmp\n  why: No space left on device")) << finished.output;
}

TEST(RunFolder, MetricsHaveTimes) {
  const Workshop shop;
  ASSERT_EQ(train_alone(shop, "run", "").code, 0);
  std::ifstream in(shop.path("run") + "/metrics.jsonl");
  std::string before;
  for (std::string line; std::getline(in, line);) {
    const auto time = nlohmann::json::parse(line).at("time").get<std::string>();
    EXPECT_EQ(time.size(), std::string("2026-01-01T00:00:00.000Z").size());
    EXPECT_LE(before, time);
    before = time;
  }
}

TEST(Retention, KeepsTheNewestTheMilestonesAndTheBest) {
  const Workshop shop;
  const Finished trained =
      train_alone(shop, "run",
                  "train.steps=12 checkpoint.every=1 train.evaluate_every=1 checkpoint.keep=2 checkpoint.milestones=4");
  ASSERT_EQ(trained.code, 0) << trained.output;
  const std::vector<double> losses = shop.metric("run", "held_out_loss");
  ASSERT_EQ(losses.size(), 12u);
  const auto best = static_cast<int>(std::min_element(losses.begin(), losses.end()) - losses.begin()) + 1;
  std::vector<std::string> expected{"best"};
  for (int step = 1; step <= 12; ++step)
    if (step > 10 || step % 4 == 0 || step == best)
      expected.push_back(fs::path(checkpoint(shop, "run", step)).filename().string());
  EXPECT_EQ(listing(shop.path("run") + "/checkpoints"), expected);
  EXPECT_EQ(fs::read_symlink(shop.path("run") + "/checkpoints/best").string(),
            fs::path(checkpoint(shop, "run", best)).filename().string());
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run") + "/checkpoints/best").code, 0);
}

TEST(Retention, TheBestIsFoundAgainAfterAResume) {
  const Workshop shop;
  const std::string often = "checkpoint.every=1 train.evaluate_every=1 checkpoint.keep=1 ";
  ASSERT_EQ(train_alone(shop, "run", often + "train.steps=4").code, 0);
  // A rate that increases the loss: the best checkpoint is the old one.
  const Finished resumed = train_alone(shop, "run", often + "train.steps=8 optimizer.rate=3 --resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_EQ(fs::read_symlink(shop.path("run") + "/checkpoints/best").string(), "step-00000004");
  EXPECT_EQ(listing(shop.path("run") + "/checkpoints"),
            (std::vector<std::string>{"best", "step-00000004", "step-00000008"}));
}

}  // namespace
}  // namespace choir::tests
