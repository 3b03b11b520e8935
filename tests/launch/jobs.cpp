#include "tests/launch/jobs.h"

#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace choir::tests {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

bool says(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

bool wait_until(const std::function<bool()>& condition) {
  const auto limit = Clock::now() + std::chrono::minutes(2);
  while (!condition()) {
    if (Clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

std::string held(const std::string& call, const std::string& part, const std::string& hold) {
  return "export LD_PRELOAD=" CHOIR_TEST_FAULTS " FAULT_CALL=" + call + " FAULT_PATH=" + part + " FAULT_HOLD=" + hold +
         "; ";
}

void create(const std::string& path) { std::ofstream(path) << "x"; }

std::string launch_train(const Workshop& shop, const std::string& arguments, const std::string& program) {
  fs::create_directories(shop.path("tmp"));
  return "export TMPDIR=" + shop.path("tmp") + " CHOIR=" + program +
         " RANKS=2; exec " CHOIR_SOURCE_DIR "/launch/train " + shop.path("tiny.yaml") +
         " train.folder=" + shop.path("run") + " parallel.tensor=2 " + arguments;
}

std::string wrapper(const Workshop& shop, const std::string& script) {
  const std::string path = shop.path("wrapper");
  std::ofstream(path) << "#!/bin/bash\n[ $1 = train ] || exec " CHOIR_BINARY " \"$@\"\n"
                      << script << "\nexec " CHOIR_BINARY " \"$@\"\n";
  chmod(path.c_str(), 0755);
  return path;
}

std::vector<pid_t> children(pid_t parent, const std::string& name) {
  std::istringstream processes(shell("pgrep -x " + name + " -P " + std::to_string(parent)).output);
  std::vector<pid_t> found;
  for (pid_t process = 0; processes >> process;) found.push_back(process);
  return found;
}

std::vector<pid_t> job_of(pid_t launcher) {
  std::vector<pid_t> job = children(launcher, "mpirun");
  if (job.empty()) job = children(launcher, "prterun");
  if (job.empty()) return job;
  for (const pid_t rank : children(job.front(), "choir")) job.push_back(rank);
  return job;
}

void kill_rank(const std::string& folder, int rank) {
  std::istringstream processes(shell("pgrep -x choir").output);
  for (pid_t process = 0; processes >> process;) {
    const std::string of = "/proc/" + std::to_string(process);
    if (says(read(of + "/cmdline"), "train.folder=" + folder) &&
        says('\0' + read(of + "/environ"),
             std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + '\0'))
      kill(process, SIGKILL);
  }
}

}  // namespace choir::tests
