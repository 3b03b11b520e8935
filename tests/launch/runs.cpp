#include "tests/launch/runs.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

namespace choir::tests {
namespace {

constexpr char configuration[] = R"(
model: {layers: 2, width: 24, vocabulary: 257, context: 16, dropout: 0.1, attention: {heads: 3}, feed_forward: {width: 40}}
data: {path: DATA, held_out: 0.2, tokenizer: {kind: bytes}}
train: {steps: 10, batch: 4, threads: 1, evaluate_sequences: 4, timeout: 30}
optimizer: {rate: 3e-3, warmup: 2}
checkpoint: {every: 5}
generate: {prompt: the, tokens: 20}
)";

constexpr char mpi[] =
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 exec mpirun --oversubscribe --bind-to none "
    "--mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none --mca odls_base_sigkill_timeout 0 "
    "--mca btl_tcp_if_include lo -n ";

constexpr char alone[] = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 exec " CHOIR_BINARY " ";

}  // namespace

Finished shell(const std::string& command) {
  Finished finished;
  std::FILE* pipe = popen(("exec 2>&1 </dev/null; " + command).c_str(), "r");
  std::array<char, 4096> buffer;
  for (std::size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) finished.output.append(buffer.data(), n);
  const int status = pclose(pipe);
  finished.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return finished;
}

Workshop::Workshop() {
  std::string name = std::filesystem::temp_directory_path() / "choir-XXXXXX";
  folder_ = mkdtemp(name.data());
  for (int document = 0; document < 5; ++document) {
    std::ofstream text(path("text-" + std::to_string(document)));
    for (int i = 0; i < 60; ++i) text << "the " << (i * 7 + document) % 23 << " birds sing in choir " << i % 5 << "\n";
  }
  std::string yaml = configuration;
  yaml.replace(yaml.find("DATA"), 4, path("tokens.h5"));
  std::ofstream(path("tiny.yaml")) << yaml;
  const Finished prepared = choir("prepare " + path("tiny.yaml") + " " + path("text-*"));
  EXPECT_EQ(prepared.code, 0) << prepared.output;
}

Workshop::~Workshop() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

Finished Workshop::choir(const std::string& arguments) const { return shell(alone + arguments); }

Finished Workshop::mpirun(int ranks, const std::string& arguments) const {
  return mpirun(ranks, CHOIR_BINARY, arguments);
}

Finished Workshop::mpirun(int ranks, const std::string& program, const std::string& arguments) const {
  return shell(mpi + std::to_string(ranks) + " " + program + " " + arguments);
}

std::string Workshop::train_command(int ranks, const std::string& run, const std::string& arguments) const {
  return mpi + std::to_string(ranks) + " " CHOIR_BINARY " train " + path("tiny.yaml") + " train.folder=" + path(run) +
         " " + arguments;
}

std::string Workshop::train_command_alone(const std::string& run, const std::string& arguments) const {
  return alone + ("train " + path("tiny.yaml")) + " train.folder=" + path(run) + " " + arguments;
}

Finished Workshop::train(int ranks, const std::string& run, const std::string& arguments) const {
  return shell(train_command(ranks, run, arguments));
}

std::vector<double> Workshop::metric(const std::string& run, const std::string& key) const {
  std::vector<double> values;
  std::ifstream in(path(run) + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto entry = nlohmann::json::parse(line);
    if (entry.contains(key)) values.push_back(entry[key].get<double>());
  }
  return values;
}

/// Starts a shell command in a new process group.
pid_t start(const std::string& command, const std::string& log) {
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    execl("/bin/sh", "sh", "-c", ("exec >" + log + " 2>&1 </dev/null; " + command).c_str(), nullptr);
    _exit(127);
  }
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Waits until the run has written a metric of at least `step`.
bool reach(const Workshop& shop, const std::string& run, double step) {
  for (int i = 0; i < 600; ++i) {
    if (std::filesystem::exists(shop.path(run) + "/metrics.jsonl")) {
      std::ifstream in(shop.path(run) + "/metrics.jsonl");
      std::string line, last;
      while (std::getline(in, line)) last = line;
      if (last.rfind("{\"step\":", 0) == 0 && std::stod(last.substr(8)) >= step) return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

/// The process of a rank of the job that mpirun runs in process `child`; 0 if there is none.
pid_t process_of_rank(pid_t child, int rank) {
  std::istringstream processes(shell("pgrep -P " + std::to_string(child)).output);
  for (pid_t process = 0; processes >> process;) {
    std::ifstream environment("/proc/" + std::to_string(process) + "/environ");
    for (std::string variable; std::getline(environment, variable, '\0');)
      if (variable == "OMPI_COMM_WORLD_RANK=" + std::to_string(rank)) return process;
  }
  return 0;
}

std::string read(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], tolerance * std::abs(a[i])) << "entry " << i;
}

bool contains(const Finished& finished, const std::string& text) {
  return finished.output.find(text) != std::string::npos;
}

std::size_t count(const Finished& finished, const std::string& text) {
  std::size_t n = 0;
  for (std::size_t at = finished.output.find(text); at != std::string::npos; at = finished.output.find(text, at + 1))
    ++n;
  return n;
}

}  // namespace choir::tests
