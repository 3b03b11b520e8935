// The job scripts of launch/slurm, with stand-ins for srun and scontrol: which ends of a job queue it again.
// tests/slurm has a real Slurm.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/launch/jobs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

/// A repository with the program, and a cluster of one host. srun starts one process, and scontrol writes its arguments
/// to a file. cmake and ninja fail: a compute node need not have them.
class JobScript : public ::testing::Test {
 protected:
  JobScript() {
    fs::create_directories(shop_.path("repository/build/release"));
    fs::create_directories(shop_.path("bin"));
    fs::create_symlink(CHOIR_SOURCE_DIR "/launch", shop_.path("repository/launch"));
    fs::create_symlink(CHOIR_BINARY, shop_.path("repository/build/release/choir"));
    program("srun", "while [[ $1 == -* ]]; do shift; done; exec \"$@\"");
    program("scontrol", "echo \"$@\" >" + shop_.path("scontrol"));
    for (const char* name : {"cmake", "ninja"}) program(name, "echo " + std::string(name) + " is called; exit 1");
  }

  /// Starts the script as the Slurm job 7, in a process group of its own.
  pid_t submit(const std::string& script, const std::string& arguments, int restarts = 0) const {
    fs::remove(shop_.path("scontrol"));
    return start("cd " + shop_.path("repository") + "; export PATH=" + shop_.path("bin") +
                     ":$PATH SLURM_JOB_ID=7 SLURM_RESTART_COUNT=" + std::to_string(restarts) +
                     " RANKS=1 OMPI_MCA_ras=^slurm OMPI_MCA_plm=rsh OMPI_MCA_rmaps_base_oversubscribe=1"
                     " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; exec bash launch/slurm/" +
                     script + " " + shop_.path("tiny.yaml") + " train.folder=" + shop_.path("run") + " " + arguments,
                 log());
  }
  void kill_ranks() const {
    std::istringstream processes(shell("pgrep -f 'choir train.*train[.]folder=" + shop_.path("run") + "'").output);
    for (pid_t process = 0; processes >> process;)
      if (read("/proc/" + std::to_string(process) + "/comm") == "choir\n") kill(process, SIGKILL);
  }
  void program(const std::string& name, const std::string& script) const {
    const std::string path = shop_.path("bin/" + name);
    std::ofstream(path) << "#!/bin/bash\n" << script << "\n";
    chmod(path.c_str(), 0755);
  }
  std::string log() const { return shop_.path("log"); }
  /// What scontrol was called with; "" if it was not.
  std::string scontrol() const { return read(shop_.path("scontrol")); }

  const Workshop shop_;
};

const std::string endless = "train.steps=1000000 checkpoint.every=5 ";

TEST_F(JobScript, QueuesTheJobAgainAfterSigUsr1AndNotAfterScancel) {
  double step = 0;
  for (const std::string script : {"mpirun.sbatch", "srun.sbatch"}) {
    const pid_t requeued = submit(script, endless);
    ASSERT_TRUE(reach(shop_, "run", step += 7)) << read(log());
    kill(requeued, SIGUSR1);  // to the script, as before the time limit
    EXPECT_EQ(wait_for(requeued), 75) << read(log());
    EXPECT_EQ(scontrol(), "requeue 7\n") << read(log());

    const pid_t cancelled = submit(script, endless);
    ASSERT_TRUE(reach(shop_, "run", step = shop_.metric("run", "step").back() + 7)) << read(log());
    kill(-cancelled, SIGTERM);  // to every process, as scancel
    EXPECT_EQ(wait_for(cancelled), 75) << read(log());
    EXPECT_NE(read(log()).find("--resume continues the run"), std::string::npos) << read(log());
    EXPECT_EQ(scontrol(), "") << read(log());
    step = shop_.metric("run", "step").back();
  }
}

TEST_F(JobScript, StartsTheRunAgainWithinTheJobAfterADeadRank) {
  double step = 0;
  for (const std::string script : {"mpirun.sbatch", "srun.sbatch"}) {
    const pid_t job = submit(script, endless);
    ASSERT_TRUE(reach(shop_, "run", step + 17)) << read(log());
    kill_ranks();
    EXPECT_TRUE(wait_until([&] { return says(read(log()), "training again after "); })) << read(log());
    kill(job, SIGUSR1);
    EXPECT_EQ(wait_for(job), 75) << read(log());
    EXPECT_EQ(scontrol(), "requeue 7\n") << read(log());
    step = shop_.metric("run", "step").back();
  }
}

TEST_F(JobScript, QueuesTheJobAgainAfterTheLastRestartIfACheckpointIsNew) {
  const std::string once = endless + "train.restarts=0 ";
  double step = 0;
  for (const std::string script : {"mpirun.sbatch", "srun.sbatch"}) {
    const pid_t job = submit(script, once);
    ASSERT_TRUE(reach(shop_, "run", step + 17)) << read(log());
    kill_ranks();
    EXPECT_EQ(wait_for(job), 137) << read(log());
    EXPECT_EQ(scontrol(), "requeue 7\n") << read(log());
    step = shop_.metric("run", "step").back();

    const pid_t hopeless = submit(script, once + "checkpoint.every=0");
    ASSERT_TRUE(reach(shop_, "run", step + 7)) << read(log());
    kill_ranks();
    EXPECT_EQ(wait_for(hopeless), 137) << read(log());
    EXPECT_EQ(scontrol(), "") << read(log());
    EXPECT_TRUE(says(read(log()), "before a new checkpoint was published")) << read(log());
    step = shop_.metric("run", "step").back();
  }
}

TEST_F(JobScript, TriesAgainIfSrunSaysThatNothingWentWrongAndHasStartedNothing) {
  program("srun", "[[ -e starts ]] || { touch starts; exit 0; }\nwhile [[ $1 == -* ]]; do shift; done; exec \"$@\"");
  EXPECT_EQ(wait_for(submit("srun.sbatch", "train.steps=10")), 0) << read(log());
  EXPECT_TRUE(says(read(log()), "starting again from step 0")) << read(log());
  EXPECT_EQ(shop_.metric("run", "loss").size(), 10u) << read(log());
}

TEST_F(JobScript, AStepToResumeFromCountsInTheFirstStartOnly) {
  EXPECT_EQ(wait_for(submit("srun.sbatch", "train.steps=10")), 0) << read(log());
  EXPECT_EQ(wait_for(submit("srun.sbatch", "train.steps=12 --resume=5")), 0) << read(log());
  EXPECT_NE(read(log()).find("after step 5"), std::string::npos) << read(log());
  EXPECT_EQ(wait_for(submit("srun.sbatch", "train.steps=14 --resume=5", 1)), 0) << read(log());
  EXPECT_NE(read(log()).find("after step 12"), std::string::npos) << read(log());
  EXPECT_EQ(scontrol(), "") << read(log());
}

}  // namespace
}  // namespace choir::tests
