// The command line: one binary, one verb, key=value for everything else.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "framework/comm/watchdog.h"
#include "launch/process.h"

namespace choir {

/// What a verb gets besides its own arguments. `run` is set by the verb that was given; it returns the exit code.
struct CommandLine {
  CLI::App app;
  int argc = 0;
  char** argv = nullptr;
  std::function<int()> run;
  /// False: stdout only reports progress, and the exit code does not depend on it.
  bool output_is_the_result = true;
  /// Of a verb that is watched; it lives until MPI is finalized.
  std::unique_ptr<Watchdog> watchdog;

  /// Starts MPI. It is finalized with the command line, after the errors of the verb have been printed.
  MpiProcess& start_mpi();

 private:
  std::unique_ptr<MpiProcess> process_;
};

/// The arguments CONFIG and key=value, which most verbs take.
struct ConfigArguments {
  std::string file;
  std::vector<std::string> words;
  void add_to(CLI::App& verb, const std::string& what_words = "key=value overrides of the configuration");
  /// Throws ConfigError; a missing train.folder becomes runs/<name of the file>.
  Config read() const;
  /// The same, with train.device as it is written.
  Config read_as_written() const;
};

/// Each registers one verb and is in the file named after the verb.
void add_train_command(CommandLine&);
void add_prepare_command(CommandLine&);
void add_config_command(CommandLine&);
void add_evaluate_command(CommandLine&);
void add_replay_command(CommandLine&);
void add_generate_command(CommandLine&);
void add_inspect_command(CommandLine&);
void add_plan_command(CommandLine&);
void add_verify_command(CommandLine&);
void add_checkpoint_command(CommandLine&);
void add_calls_command(CommandLine&);
void add_bench_command(CommandLine&);
void add_doctor_command(CommandLine&);
void add_hosts_command(CommandLine&);
void add_progress_command(CommandLine&);

/// `choir plan`, and `choir train --dry-run`. A rank that is planned for has `processors` processors.
int print_plan(Config config, std::int64_t ranks, int processors, bool json);

/// Writes `text` to stdout at once. Throws Error if it cannot be written.
void write_now(const std::string& text);

/// Parses, runs the verb and turns what it throws into exit codes: 0 done, 1 the machine failed, 2 the user's mistake.
/// With several ranks a user's mistake is printed once. A result that cannot be written to stdout is a failure.
int run_command_line(int argc, char** argv);

}  // namespace choir
