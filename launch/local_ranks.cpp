#include "launch/local_ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>
#include <vector>

#include "framework/core/host.h"
#include "launch/process.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

struct RankProcess {
  int rank;
  std::string process;  // its number
  char state;           // of proc(5): T, t: stopped by a signal or a debugger; Z, X: dead
  bool runs() const { return std::string_view("TtZX").find(state) == std::string_view::npos; }
};

/// The environment with which a process has been started; empty if it has ended or is another user's.
std::map<std::string, std::string> environment_of(const fs::path& folder) {
  std::map<std::string, std::string> environment;
  std::ifstream file(folder / "environ");
  for (std::string word; std::getline(file, word, '\0');)
    if (const std::size_t sign = word.find('='); sign != std::string::npos)
      environment.emplace(word.substr(0, sign), word.substr(sign + 1));
  return environment;
}

char state_of(const fs::path& folder) {
  std::string text;
  std::getline(std::ifstream(folder / "stat"), text, '\0');
  const std::size_t name_end = text.rfind(") ");  // the name, in parentheses, may contain anything
  return name_end != std::string::npos && name_end + 2 < text.size() ? text[name_end + 2] : 'X';
}

/// All processes on this host that have been started with the same job, host and step as this one, and have a rank.
std::vector<RankProcess> rank_processes() {
  // Hosts are told apart too: several may share a machine. A launcher sets some of these.
  constexpr const char* alike[] = {"PMIX_NAMESPACE", "PMIX_HOSTNAME", "PMI_JOBID",
                                   "SLURM_JOB_ID",   "SLURM_STEP_ID", "SLURMD_NODENAME"};
  const auto own = environment_of("/proc/self");
  const auto value = [](const auto& environment, const std::string& name) {
    const auto found = environment.find(name);
    return found == environment.end() ? std::string() : found->second;
  };
  std::vector<RankProcess> processes;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto environment = environment_of(entry.path());
    const bool same_job = std::all_of(std::begin(alike), std::end(alike), [&](const char* variable) {
      return value(environment, variable) == value(own, variable);
    });
    const auto rank = std::find_if(std::begin(rank_variables), std::end(rank_variables),
                                   [&](const char* variable) { return environment.count(variable) != 0; });
    if (!same_job || rank == std::end(rank_variables)) continue;
    processes.push_back(
        {.rank = std::atoi(value(environment, *rank).c_str()), .process = name, .state = state_of(entry.path())});
  }
  std::sort(processes.begin(), processes.end(),
            [](const RankProcess& a, const RankProcess& b) { return a.rank < b.rank; });
  return processes;
}

}  // namespace

std::string stopped_local_ranks() {
  std::string lines;
  for (const RankProcess& process : rank_processes()) {
    if (process.runs() && process.rank < launcher_rank()) return {};
    if (process.runs()) continue;
    const bool stopped = process.state == 'T' || process.state == 't';
    lines += fmt::format("rank {} on {}: {} while MPI starts, process {}\n", process.rank, host_name(),
                         stopped ? "stopped" : "dead", process.process);
  }
  return lines;
}

}  // namespace choir
