// The whole program, end to end: training in several layouts, resume, signals, dead and hung ranks, full disks, wrong
// input.
//
// A new case is a Workshop, one or two calls, and what a user must see.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

using ::testing::ExitedWithCode;

TEST(TrainingRun, AnyLayoutGivesTheSameLosses) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "one").code, 0);
  const std::vector<double> losses = shop.metric("one", "loss"), bits = shop.metric("one", "bits_per_byte");
  ASSERT_EQ(losses.size(), 10u);
  ASSERT_EQ(bits.size(), 1u);
  const std::pair<int, std::string> layouts[] = {{2, "parallel.tensor=2"},
                                                 {3, "parallel.tensor=3 parallel.sequence=true"},
                                                 {2, "parallel.zero=1 parallel.micro_batch=1"},
                                                 {4, "parallel.tensor=2 parallel.zero=1 train.recompute=block"}};
  for (const auto& [ranks, layout] : layouts) {
    const Finished run = shop.train(ranks, "many", layout);
    ASSERT_EQ(run.code, 0) << run.output;
    expect_near(shop.metric("many", "loss"), losses, relative);
    expect_near(shop.metric("many", "bits_per_byte"), bits, relative);
    std::filesystem::remove_all(shop.path("many"));
  }
}

// Of a model that has all that counts something.
TEST(TrainingRun, WhatIsComputedAgainChangesNoDigit) {
  const Workshop shop;
  const std::string words =
      "model.experts.count=4 model.experts.chosen=2 model.attention.routing.chosen=1 model.attention.routing.always=1 "
      "parallel.tensor=2 parallel.sequence=true train.inspect_every=5 train.recompute=";
  const auto metrics_with = [&](const std::string& kind) {
    const Finished run = shop.train(2, kind, words + kind);
    EXPECT_EQ(run.code, 0) << run.output;
    std::map<std::string, std::vector<nlohmann::json>> metrics;
    std::ifstream file(shop.path(kind + "/metrics.jsonl"));
    for (std::string text; std::getline(file, text);) {
      const nlohmann::json line = nlohmann::json::parse(text);
      for (const char* name : {"loss", "gradient_norm", "held_out_loss", "dropped", "balance_loss", "heads_dropped",
                               "head_balance_loss", "head_imbalance", "head_entropy", "head_sink"})
        if (line.contains(name)) metrics[name].push_back(line[name]);
    }
    return metrics;
  };
  const auto saved = metrics_with("none");
  EXPECT_EQ(saved.size(), 10u);
  for (const char* kind : {"norms", "attention", "feed_forward", "block"}) EXPECT_EQ(metrics_with(kind), saved) << kind;
}

TEST(TrainingRun, ResumeIsExactInTheSameLayoutAndToRoundingInAnother) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "whole", "parallel.tensor=2").code, 0);
  const std::vector<double> whole = shop.metric("whole", "loss");
  const auto back_to_5 = [&](const std::string& run) {
    std::filesystem::remove_all(shop.path(run));
    std::filesystem::copy(shop.path("whole"), shop.path(run), std::filesystem::copy_options::recursive);
    std::filesystem::remove_all(shop.path(run) + "/checkpoints/step-00000010");
  };
  back_to_5("same");
  const Finished same = shop.train(2, "same", "parallel.tensor=2 --resume");
  ASSERT_EQ(same.code, 0) << same.output;
  EXPECT_EQ(shop.metric("same", "loss"), whole);  // bit for bit, as the metrics print all digits

  back_to_5("other");
  const Finished other = shop.train(3, "other", "parallel.tensor=1 parallel.zero=1 train.batch=4 --resume");
  EXPECT_EQ(other.code, 2) << "a batch of 4 does not divide over 3 data ranks";
  const Finished four = shop.train(4, "other", "parallel.tensor=2 parallel.zero=1 --resume");
  ASSERT_EQ(four.code, 0) << four.output;
  expect_near(shop.metric("other", "loss"), whole, relative);
}

TEST(TrainingRun, ResumeRejectsADamagedCheckpointAndUsesTheOneBefore) {
  const Workshop shop;
  ASSERT_EQ(shop.train(2, "run", "parallel.tensor=2").code, 0);
  const std::vector<double> whole = shop.metric("run", "loss");
  const std::string victim = shop.path("run") + "/checkpoints/step-00000010/rank-1.h5";
  std::fstream file(victim, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(victim) - 100));
  file.put('\x55');
  file.close();
  const Finished checked = shop.choir("checkpoint verify " + shop.path("run"));
  EXPECT_EQ(checked.code, 1);
  EXPECT_TRUE(contains(checked, "rank-1.h5")) << checked.output;
  const Finished resumed = shop.train(2, "run", "parallel.tensor=2 --resume");
  EXPECT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_TRUE(contains(resumed, "rejected " + shop.path("run") + "/checkpoints/step-00000010")) << resumed.output;
  EXPECT_TRUE(contains(resumed, "after step 5")) << resumed.output;
  EXPECT_EQ(shop.metric("run", "loss"), whole);
}

TEST(TrainingRun, ResumeNamesTheFieldsThatMayNotDiffer) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run").code, 0);
  const Finished finished = shop.train(1, "run", "--resume model.width=48 train.seed=5 train.evaluate_every=5");
  EXPECT_EQ(finished.code, 2);
  EXPECT_TRUE(contains(finished, "model.width = 48, but the run was started with 24")) << finished.output;
  EXPECT_TRUE(contains(finished, "train.seed = 5, but the run was started with 1")) << finished.output;
  EXPECT_FALSE(contains(finished, "train.evaluate_every = 5, but")) << finished.output;
  const Finished again = shop.train(1, "run");
  EXPECT_EQ(again.code, 2);
  EXPECT_TRUE(contains(again, "already holds a run")) << again.output;
}

TEST(TrainingRun, StartsFromWeights) {
  const Workshop shop;
  ASSERT_EQ(shop.train(1, "run").code, 0);
  const std::vector<double> first = shop.metric("run", "loss");
  const Finished finished =
      shop.train(2, "next", "parallel.tensor=2 train.from=" + shop.path("run") + "/checkpoints/step-00000010");
  ASSERT_EQ(finished.code, 0) << finished.output;
  EXPECT_LT(shop.metric("next", "loss").front(), first.front() - 0.5);
}

TEST(TrainingRun, SignalsSaveAndEndWithTheirCodes) {
  const Workshop shop;
  const std::pair<int, int> cases[] = {{SIGUSR1, 75}, {SIGINT, 130}, {SIGTERM, 75}};
  for (const auto& [signal, code] : cases) {
    const std::string run = "run-" + std::to_string(signal);
    const pid_t child = start(shop.train_command_alone(run, "train.steps=100000"), shop.path("log"));
    ASSERT_TRUE(reach(shop, run, 7)) << read(shop.path("log"));
    kill(child, signal);
    EXPECT_EQ(wait_for(child), code) << read(shop.path("log"));
    EXPECT_NE(read(shop.path("log")).find("--resume continues the run"), std::string::npos) << read(shop.path("log"));
    EXPECT_EQ(shop.choir("checkpoint verify " + shop.path(run)).code, 0);
  }
}

TEST(TrainingRun, SigUsr1ToMpirunSavesOnEveryRank) {
  const Workshop shop;
  const pid_t child = start(shop.train_command(2, "run", "parallel.tensor=2 train.steps=100000"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 7)) << read(shop.path("log"));
  kill(child, SIGUSR1);
  EXPECT_EQ(wait_for(child), 75) << read(shop.path("log"));
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
}

TEST(TrainingRun, ADeadRankEndsTheJobInSecondsAndTheCallsOfEachRankRemain) {
  const Workshop shop;
  const pid_t child = start(shop.train_command(2, "run", "parallel.tensor=2 train.steps=100000"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 40)) << read(shop.path("log"));
  const Finished ranks = shell("pgrep -f 'train.folder=" + shop.path("run") + "' -P " + std::to_string(child));
  ASSERT_FALSE(ranks.output.empty());
  const auto begin = std::chrono::steady_clock::now();
  kill(static_cast<pid_t>(std::stol(ranks.output)), SIGKILL);
  EXPECT_NE(wait_for(child), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  const Finished calls = shop.choir("calls " + shop.path("run"));
  EXPECT_EQ(calls.code, 0);
  EXPECT_TRUE(contains(calls, "rank 0")) << calls.output;
  EXPECT_TRUE(contains(calls, "rank 1")) << calls.output;
  EXPECT_TRUE(contains(calls, "tensor")) << calls.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0) << "the last checkpoint is whole";
}

TEST(TrainingRun, AHungRankEndsTheJobInSecondsAndTheReportNamesIt) {
  const Workshop shop;
  const pid_t child =
      start(shop.train_command(2, "run", "parallel.tensor=2 train.steps=100000 train.timeout=2"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 40)) << read(shop.path("log"));
  const pid_t hung = process_of_rank(child, 1);
  ASSERT_NE(hung, 0) << read(shop.path("log"));
  // If it is stopped in a call that both ranks have begun, neither is behind: continue it, and stop it again.
  bool behind = false;
  for (int tries = 0; tries < 100 && !behind; ++tries) {
    kill(hung, SIGCONT);
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + tries));
    kill(hung, SIGSTOP);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the other rank reaches the call where it waits
    behind = contains(shop.choir("calls " + shop.path("run")), "rank 1 is ");
  }
  EXPECT_TRUE(behind);

  const auto begin = std::chrono::steady_clock::now();
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)) continue;
    kill(hung, SIGKILL);  // a stopped process would not end
    wait_for(child);
    FAIL() << "the job did not end\n" << read(shop.path("log"));
  }
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1) << "the machine failed";
  std::string left;
  for (int tries = 0; tries == 0 || (tries < 100 && !left.empty()); ++tries) {  // mpirun kills, and does not wait
    std::this_thread::sleep_for(std::chrono::milliseconds(tries == 0 ? 0 : 50));
    left = shell("pgrep -f 'train[.]folder=" + shop.path("run") + "'").output;
  }
  EXPECT_EQ(left, "") << "a process is left";

  const std::string report = read(shop.path("log"));
  for (const char* words : {"no collective call and no step has begun or ended for 2 s (train.timeout)", "rank 1 is ",
                            ", rank 0 at ", "rank 0:\n", "bytes, running for ", "rank 1:\n", "ending the job"})
    EXPECT_NE(report.find(words), std::string::npos) << "no '" << words << "' in\n" << report;
  const Finished calls = shop.choir("calls " + shop.path("run"));
  EXPECT_EQ(calls.code, 0);
  // Not which rank was behind: mpirun continues a stopped process before it ends it, which may make a call or two.
  EXPECT_TRUE(contains(calls, "rank 0:\n")) << calls.output;
  EXPECT_TRUE(contains(calls, "rank 1:\n")) << calls.output;
  EXPECT_TRUE(contains(calls, "bytes, running for ")) << calls.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0) << "the last checkpoint is whole";
}

TEST(TrainingRun, ANonFiniteLossEndsTheRunAndSavesNothingOverTheLastCheckpoint) {
  const Workshop shop;
  const Finished finished = shop.train(
      2, "run", "parallel.tensor=2 optimizer.kind=sgd optimizer.rate=1e30 optimizer.clip=0 checkpoint.every=1");
  EXPECT_EQ(finished.code, 3) << finished.output;
  EXPECT_TRUE(contains(finished, "the first bad gradient is that of ")) << finished.output;
  EXPECT_TRUE(contains(finished, "on rank ")) << finished.output;
  // The step before was finite and is saved; nothing is saved after it, and what is there is whole.
  std::vector<std::string> saved;
  for (const auto& entry : std::filesystem::directory_iterator(shop.path("run") + "/checkpoints"))
    saved.push_back(entry.path().filename());
  EXPECT_EQ(saved, std::vector<std::string>{"step-00000001"}) << finished.output;
  EXPECT_EQ(shop.choir("checkpoint verify " + shop.path("run")).code, 0);
}

// A file-size limit stands in for a full disk: the write fails in the same place, and the test needs no rights. The one
// rank does not need shared memory, for which Open MPI 5 makes a file that is larger than the limit.
const std::string full_disk = "ulimit -f 16000; export OMPI_MCA_btl=self; ";

TEST(TrainingRun, AFullDiskFailsTheSaveAndTrainingContinues) {
  const Workshop shop;
  const Finished finished = shell(full_disk + shop.train_command_alone("run", "model.width=360"));
  EXPECT_TRUE(contains(finished, "could not save")) << finished.output;
  EXPECT_TRUE(contains(finished, "step 10: held-out loss")) << finished.output;
  EXPECT_EQ(finished.code, 1) << "the last save has failed";
}

TEST(TrainingRun, ARunThatIsStoppedAndCannotBeSavedHasFailed) {
  const Workshop shop;
  const pid_t child =
      start(full_disk + shop.train_command_alone("run", "model.width=360 train.steps=100000"), shop.path("log"));
  ASSERT_TRUE(reach(shop, "run", 3)) << read(shop.path("log"));
  kill(child, SIGUSR1);
  EXPECT_EQ(wait_for(child), 1) << read(shop.path("log"));
  EXPECT_NE(read(shop.path("log")).find("as asked, but not saved"), std::string::npos) << read(shop.path("log"));
}

TEST(TrainingRun, UserMistakesAreReportedOnceAndExitWith2) {
  const Workshop shop;
  const std::pair<std::string, std::string> cases[] = {
      {"model.hedas=4", "model.attention.heads"},
      {"train.steps=many", "train.steps"},
      {"parallel.tensor=2 model.width=25", "model.width"},
      {"parallel.tensor=4", "parallel.tensor"},
      {"data.path=" + shop.path("nowhere.h5"), "nowhere.h5: there is no such file\n  fix: did you mean "},
      {"data.path=" + shop.path("0123456789abcdef"), "there is no such file\n  fix: choir prepare CONFIG"},
      {"data.path=" + shop.path("text-0"), "text-0"},
      {"model.vocabulary=200", "model.vocabulary"},
      {"data.tokenizer.kind=sentencepiece", "data.tokenizer.kind = bytes, not sentencepiece"},
      {"train.from=" + shop.path("nothing"), "nothing"},
  };
  for (const auto& [arguments, named] : cases) {
    const Finished finished = shop.train(2, "run", arguments);
    EXPECT_EQ(finished.code, 2) << arguments << "\n" << finished.output;
    EXPECT_TRUE(contains(finished, named)) << arguments << "\n" << finished.output;
    EXPECT_EQ(count(finished, "choir: "), 1u) << arguments << "\n" << finished.output;
  }
}

TEST(Verbs, MistakesListTheValidChoices) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "choir: no verb is named\n  why: the verbs of choir are train, prepare, "},
      {"trian", "choir: there is no verb trian\n"},
      {"trian", "\n  fix: did you mean choir train?\n"},
      {"checkpoint lst", "\n  fix: did you mean choir checkpoint list?\n"},
      {"frobnicate", "\n  fix: see choir --help\n"},
      {"calls nowhere", "choir: RUN = nowhere is not a run folder: it has no folder logs\n"},
      {"train x.yaml --frob",
       "choir: The following argument was not expected: --frob\n  fix: see choir train --help\n"},
  };
  for (const auto& [words, said] : cases) {
    const Finished finished = shell(CHOIR_BINARY " " + words);
    EXPECT_EQ(finished.code, 2) << words << "\n" << finished.output;
    EXPECT_TRUE(contains(finished, said)) << words << "\n" << finished.output;
  }
}

TEST(Verbs, GenerateEvaluateShowAndExport) {
  const Workshop shop;
  ASSERT_EQ(shop.train(3, "run", "parallel.tensor=3").code, 0);
  const Finished text = shop.choir("generate " + shop.path("run") + " generate.seed=3");
  EXPECT_EQ(text.code, 0) << text.output;
  EXPECT_EQ(text.output.rfind("the", 0), 0u) << text.output;
  EXPECT_EQ(shop.choir("generate " + shop.path("run") + " generate.seed=3").output, text.output);
  // More tokens than the context holds.
  EXPECT_EQ(shop.choir("generate " + shop.path("run") + " generate.tokens=50 generate.temperature=0").code, 0);

  const Finished one = shop.choir("evaluate " + shop.path("run") + " --json");
  const Finished two = shop.mpirun(2, "evaluate " + shop.path("run") + " parallel.tensor=2 --json");
  ASSERT_EQ(one.code, 0) << one.output;
  ASSERT_EQ(two.code, 0) << two.output;
  const auto bits = [](const Finished& f) { return std::stod(f.output.substr(f.output.find("bits_per_byte") + 15)); };
  EXPECT_NEAR(bits(one), bits(two), relative * bits(one));

  EXPECT_TRUE(contains(shop.choir("checkpoint list " + shop.path("run")), "step-00000010"));
  EXPECT_TRUE(contains(shop.choir("checkpoint show " + shop.path("run")), "blocks.1.attention.q.weight"));
  const Finished exported = shop.mpirun(2, "checkpoint export " + shop.path("run") + " " + shop.path("one.h5"));
  EXPECT_EQ(exported.code, 0) << exported.output;
  EXPECT_TRUE(std::filesystem::exists(shop.path("one.h5")));
}

TEST(Verbs, PlanCountsWhatARunUses) {
  const Workshop shop;
  const std::string config = shop.path("tiny.yaml") + " train.threads=1 ";
  for (const std::string layout :
       {"parallel.tensor=1", "parallel.tensor=2", "parallel.tensor=2 parallel.sequence=true"}) {
    const int ranks = layout == "parallel.tensor=1" ? 1 : 2;
    const Finished bench = shop.mpirun(ranks, "bench train " + config + layout + " --steps 1 --warm-up 1 --json");
    ASSERT_EQ(bench.code, 0) << bench.output;
    const auto value = [&](const std::string& key) {
      return std::stod(bench.output.substr(bench.output.find("\"" + key + "\":") + key.size() + 3));
    };
    EXPECT_NEAR(value("planned_bytes"), value("allocator_peak_bytes"), 0.02 * value("allocator_peak_bytes")) << layout;
    EXPECT_NEAR(value("share_of_limit") * value("limit_flops_per_second"), value("model_flops_per_second"),
                1e-6 * value("model_flops_per_second"));
    EXPECT_EQ(value("steps"), 1);
  }
}

TEST(Verbs, VerifyProvesALayout) {
  const Workshop shop;
  const Finished finished =
      shop.mpirun(3, "verify " + shop.path("tiny.yaml") + " parallel.tensor=3 parallel.sequence=true");
  EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_TRUE(contains(finished, "the layout computes what one rank computes")) << finished.output;
}

}  // namespace
}  // namespace choir::tests
