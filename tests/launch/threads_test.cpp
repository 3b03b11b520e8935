// The threads of a rank: how many it gets, that no setting of OpenMP silently changes a result, and that a process of a
// foreign launcher does not train alone.
#include "launch/threads.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "launch/process.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

ProcessorSet processors(std::size_t begin, std::size_t end) {
  ProcessorSet set;
  for (std::size_t i = begin; i < end; ++i) set.set(i);
  return set;
}

TEST(Processors, OfASetOfItsOwnARankHasAll) {
  const std::vector<ProcessorSet> own = {processors(0, 8), processors(8, 16), processors(16, 17)};
  EXPECT_EQ(processors_of_rank(own, 0), 8);
  EXPECT_EQ(processors_of_rank(own, 1), 8);
  EXPECT_EQ(processors_of_rank(own, 2), 1);
}

TEST(Processors, OfASharedSetARankHasItsShareAtLeastOne) {
  EXPECT_EQ(processors_of_rank(std::vector<ProcessorSet>(1, processors(0, 6)), 0), 6);
  EXPECT_EQ(processors_of_rank(std::vector<ProcessorSet>(3, processors(0, 6)), 2), 2);
  EXPECT_EQ(processors_of_rank(std::vector<ProcessorSet>(3, processors(0, 3)), 0), 1);
  EXPECT_EQ(processors_of_rank(std::vector<ProcessorSet>(4, processors(0, 2)), 3), 1);
  // Two sockets with two ranks each, and a rank that may use both beside one that may not.
  const std::vector<ProcessorSet> sockets = {processors(0, 8), processors(0, 8), processors(8, 16), processors(8, 16)};
  EXPECT_EQ(processors_of_rank(sockets, 1), 4);
  const std::vector<ProcessorSet> unequal = {processors(0, 16), processors(8, 16)};
  EXPECT_EQ(processors_of_rank(unequal, 0), 12);
  EXPECT_EQ(processors_of_rank(unequal, 1), 4);
  EXPECT_EQ(processors_of_rank({{}}, 0), 1);
}

/// Runs the program with the given variables, and no others of OpenMP or of a launcher, in its environment. Waiting
/// threads sleep, since the machine can be busy.
class Threads : public ::testing::Test {
 protected:
  static std::string environment(const std::string& variables) {
    return "env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT -u OMP_DYNAMIC -u OMP_PROC_BIND -u OMP_PLACES "
           "-u OMPI_COMM_WORLD_SIZE OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 "
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " +
           variables + " ";
  }
  Finished choir(const std::string& variables, const std::string& arguments) const {
    return shell(environment(variables) + CHOIR_BINARY " " + arguments);
  }
  Finished train(const std::string& variables, const std::string& run, const std::string& arguments = "") const {
    return choir(variables,
                 "train " + workshop_.path("tiny.yaml") + " train.folder=" + workshop_.path(run) +
                     " model.width=96 model.feed_forward.width=384 model.context=64 model.layers=1 train.steps=2 " +
                     arguments);
  }
  std::vector<double> losses(const std::string& variables, const std::string& arguments) const {
    const Finished finished = train(variables, "run", arguments);
    EXPECT_EQ(finished.code, 0) << finished.output;
    std::vector<double> losses = workshop_.metric("run", "loss");
    std::filesystem::remove_all(workshop_.path("run"));
    EXPECT_EQ(losses.size(), 2u);
    return losses;
  }
  void expect_refused(const std::string& variables, const std::string& arguments,
                      const std::vector<std::string>& words) const {
    const Finished finished = train(variables, "refused", arguments);
    EXPECT_EQ(finished.code, 2) << variables << "\n" << finished.output;
    for (const std::string& word : words) EXPECT_TRUE(contains(finished, word)) << word << "\n" << finished.output;
    EXPECT_FALSE(std::filesystem::exists(workshop_.path("refused"))) << "a refused run left a folder";
  }
  /// The threads of each of `ranks` ranks, from the plan.
  std::string planned(const std::string& variables, int ranks, const std::string& arguments = "train.threads=0") const {
    const Finished finished =
        choir(variables, "plan " + workshop_.path("tiny.yaml") + " " + arguments + " --ranks " + std::to_string(ranks));
    const std::string before = "planned for CPU ranks with ";
    const std::size_t at = finished.output.find(before);
    if (finished.code != 0 || at == std::string::npos) return finished.output;
    return finished.output.substr(at + before.size(),
                                  finished.output.find(' ', at + before.size()) - at - before.size());
  }
  const Workshop workshop_;
};

TEST_F(Threads, NoSettingOfOpenMpMakesATeamSmallerThanPlanned) {
  const std::vector<double> expected = losses("", "train.threads=2");
  for (const char* variables : {"OMP_DYNAMIC=true", "OMP_MAX_ACTIVE_LEVELS=0"})
    for (const char* streams : {"immediate", "threaded"})  // the worker threads of streams have their own settings
      EXPECT_EQ(losses(variables, std::string("train.threads=2 train.streams=") + streams), expected)
          << variables << " " << streams;
}

TEST_F(Threads, NoOtherSettingOfOpenMpChangesALoss) {
  const std::vector<double> expected = losses("", "train.threads=2");
  for (const char* variables :
       {"OMP_THREAD_LIMIT=2", "OMP_NUM_THREADS=3,2 OMP_NESTED=true", "OMP_PROC_BIND=true", "OMP_PLACES={0}"})
    EXPECT_EQ(losses(variables, "train.threads=2"), expected) << variables;
}

TEST_F(Threads, MoreThanTheLimitOfOpenMpIsRefused) {
  expect_refused("OMP_THREAD_LIMIT=1", "train.threads=2", {"train.threads = 2", "OMP_THREAD_LIMIT = 1"});
  expect_refused("OMP_THREAD_LIMIT=2 OMP_NUM_THREADS=4", "train.threads=0",
                 {"OMP_NUM_THREADS = 4", "OMP_THREAD_LIMIT = 2"});
}

TEST_F(Threads, TheDefaultRespectsTheLimitOfOpenMp) {
  EXPECT_EQ(losses("OMP_THREAD_LIMIT=1", "train.threads=0"), losses("", "train.threads=1"));
  EXPECT_EQ(losses("OMP_THREAD_LIMIT=1", "train.threads=0 train.streams=threaded"), losses("", "train.threads=1"));
}

TEST_F(Threads, WhatIsNotANumberOfThreadsIsRefused) {
  for (const char* value : {"abc", "0", "-2", "2x", "99999999999"})
    expect_refused(std::string("OMP_NUM_THREADS=") + value, "train.threads=0",
                   {std::string("OMP_NUM_THREADS = ") + value});
  EXPECT_EQ(losses("OMP_NUM_THREADS=abc", "train.threads=1"), losses("", "train.threads=1"));
}

TEST_F(Threads, ThePlanCountsThemAsARunDoes) {
  const std::size_t here = usable_processors().count();
  EXPECT_EQ(planned("", 1), std::to_string(here));
  EXPECT_EQ(planned("", 4), std::to_string(std::max<std::size_t>(1, here / 4)));
  EXPECT_EQ(planned("OMP_PROC_BIND=true", 1), std::to_string(here));
  EXPECT_EQ(planned("OMP_NUM_THREADS=3", 2), "3");
  EXPECT_EQ(planned("OMP_NUM_THREADS=' 5 , 2'", 2), "5");
  EXPECT_EQ(planned("OMP_NUM_THREADS=", 1), std::to_string(here));
  EXPECT_EQ(planned("OMP_NUM_THREADS=3", 2, "train.threads=7"), "7");
  EXPECT_EQ(planned("OMP_THREAD_LIMIT=1", 1), "1");
  std::size_t first = 0;
  while (!usable_processors()[first]) ++first;
  EXPECT_EQ(planned("taskset -c " + std::to_string(first), 1), "1");
}

TEST_F(Threads, RanksOfOneMachineShareItsProcessorsUnlessEachHasItsOwn) {
  const std::size_t here = usable_processors().count();
  const auto dry_run = [&](const std::string& wrapper) {
    return shell(environment("") + "mpirun --oversubscribe --bind-to none -n 2 " + wrapper + " " + CHOIR_BINARY +
                 " train " + workshop_.path("tiny.yaml") + " train.threads=0 --dry-run");
  };
  const auto says = [](std::size_t threads) { return "CPU ranks with " + std::to_string(threads) + " thread"; };
  const Finished shared = dry_run("");
  EXPECT_TRUE(contains(shared, says(std::max<std::size_t>(1, here / 2)))) << shared.output;
  if (here < 4) GTEST_SKIP() << "to give two ranks more than one processor each needs four";
  std::string list[2];
  for (std::size_t i = 0, taken = 0; taken < 4; ++i) {
    if (!usable_processors()[i]) continue;
    std::string& of_rank = list[taken++ % 2];
    if (!of_rank.empty()) of_rank += ',';
    of_rank += std::to_string(i);
  }
  const Finished own = dry_run("sh -c 'case $OMPI_COMM_WORLD_RANK in 0) list=" + list[0] + ";; *) list=" + list[1] +
                               ";; esac; exec taskset -c $list \"$@\"' -");
  EXPECT_TRUE(contains(own, says(2))) << own.output;
}

TEST_F(Threads, TheDoctorReportsTheirNumberAndProblems) {
  const std::string folder = "doctor " + workshop_.path("runs");
  const Finished good = choir("OMP_NUM_THREADS=3", folder);
  EXPECT_EQ(good.code, 0) << good.output;
  EXPECT_TRUE(contains(good, "3 a rank, from OMP_NUM_THREADS")) << good.output;
  const Finished broken = choir("OMP_NUM_THREADS=3 OMP_THREAD_LIMIT=2 PMI_SIZE=4", folder);
  EXPECT_EQ(broken.code, 1) << broken.output;
  EXPECT_TRUE(contains(broken, "OMP_NUM_THREADS = 3, but OMP_THREAD_LIMIT = 2")) << broken.output;
  EXPECT_TRUE(contains(broken, "PMI_SIZE = 4")) << broken.output;
}

TEST_F(Threads, RanksBoundToTheSameProcessorsAreReported) {
  const Finished finished =
      shell(environment("OMP_PROC_BIND=true") + "mpirun --oversubscribe --bind-to none -n 2 " + CHOIR_BINARY " train " +
            workshop_.path("tiny.yaml") + " train.steps=2 train.folder=" + workshop_.path("bound"));
  EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_EQ(count(finished, "OMP_PROC_BIND"), 1u) << finished.output;
}

TEST_F(Threads, AProcessOfAForeignLauncherDoesNotTrainAlone) {
  const std::string mpi = mpi_library();
  expect_refused("PMI_SIZE=2 PMI_RANK=0", "", {"mpiexec of the MPICH family", "one of 2 (PMI_SIZE = 2)", mpi});
  expect_refused("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=3", "", {"srun of Slurm", "SLURM_STEP_NUM_TASKS = 4", mpi});
  expect_refused("OMPI_COMM_WORLD_SIZE=3", "", {"mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE = 3", mpi});
}

TEST_F(Threads, AnAllocationOrAShellInItIsNotAForeignLauncher) {
  for (const char* variables :
       {"SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_NPROCS=4 SLURM_PROCID=0 SLURM_LOCALID=0",  // a batch script without srun
        "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=1",        // salloc with an interactive step
        "SLURM_JOB_ID=7 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=40001",  // srun --pty
        "PMI_SIZE=1 PMI_RANK=0"}) {
    const Finished finished = train(variables, "run");
    EXPECT_EQ(finished.code, 0) << variables << "\n" << finished.output;
    std::filesystem::remove_all(workshop_.path("run"));
  }
  // One rank of the right launcher, inside a wrong one; and a verb that runs in one process.
  const Finished inside = shell(environment("PMI_SIZE=4 PMI_RANK=1") + "mpirun -n 1 " CHOIR_BINARY " train " +
                                workshop_.path("tiny.yaml") + " train.folder=" + workshop_.path("run"));
  EXPECT_EQ(inside.code, 0) << inside.output;
  const Finished text = choir("PMI_SIZE=4 PMI_RANK=1", "generate " + workshop_.path("run"));
  EXPECT_EQ(text.code, 0) << text.output;
}

TEST(Process, ARankThatWaitsLeavesItsProcessorToOthers) {
  const pid_t child = fork();  // MPI can start once in a process, and it changes the environment
  if (child == 0) {
    unsetenv("OMPI_MCA_mpi_yield_when_idle");
    int argc = 0, provided = 0, index = 0, count = 0, yields = 0;
    char** argv = nullptr;
    const MpiProcess process(&argc, &argv);
    MPI_T_init_thread(MPI_THREAD_SINGLE, &provided);
    MPI_T_cvar_handle handle;
    const bool known = MPI_T_cvar_get_index("mpi_yield_when_idle", &index) == MPI_SUCCESS &&
                       MPI_T_cvar_handle_alloc(index, nullptr, &handle, &count) == MPI_SUCCESS;
    if (known) MPI_T_cvar_read(handle, &yields);
    _exit(known ? yields : 77);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "not Open MPI";
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

}  // namespace
}  // namespace choir::tests
