// Runs the program itself, under mpirun, as a user would: a tiny corpus, a tiny model, a temporary folder.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace choir::tests {

struct Finished {
  int code = 0;
  std::string output;  ///< stdout and stderr
};

/// A temporary folder with corpus.txt files, a configuration and its token file, removed at the end.
class Workshop {
 public:
  Workshop();
  ~Workshop();
  Workshop(const Workshop&) = delete;
  Workshop& operator=(const Workshop&) = delete;

  const std::string& folder() const { return folder_; }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  /// `choir ARGUMENTS` in one process.
  Finished choir(const std::string& arguments) const;
  /// The same under mpirun with `ranks` ranks.
  Finished mpirun(int ranks, const std::string& arguments) const;
  /// Another program in place of choir.
  Finished mpirun(int ranks, const std::string& program, const std::string& arguments) const;
  /// `train CONFIG` with the run folder `run`, under mpirun.
  Finished train(int ranks, const std::string& run, const std::string& arguments = "") const;
  /// The shell command of train(), for a test that sends signals to it.
  std::string train_command(int ranks, const std::string& run, const std::string& arguments = "") const;
  /// The shell command of train() in one process without mpirun, which gets signals and limits directly.
  std::string train_command_alone(const std::string& run, const std::string& arguments) const;

  /// The values of `key` in a run's metrics.jsonl, in order.
  std::vector<double> metric(const std::string& run, const std::string& key) const;

 private:
  std::string folder_;
};

Finished shell(const std::string& command);

/// Starts a shell command in a new process group; its output goes to the file `log`.
pid_t start(const std::string& command, const std::string& log);
/// The exit code of a command that start() started; 128 + signal if a signal ended it.
int wait_for(pid_t child);
/// Waits until the run has written a metric of at least `step`; false after 30 s.
bool reach(const Workshop& shop, const std::string& run, double step);
/// The process of a rank of the job that mpirun runs in process `child`; 0 if there is none.
pid_t process_of_rank(pid_t child, int rank);
/// All bytes of a file; empty if it does not exist.
std::string read(const std::string& path);

/// Whether, and how often, the output contains `text`.
bool contains(const Finished& finished, const std::string& text);
std::size_t count(const Finished& finished, const std::string& text);

/// The relative difference of losses over 20 steps, between layouts and devices, that the design guarantees.
inline constexpr double relative = 1e-5;
void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance);

}  // namespace choir::tests
