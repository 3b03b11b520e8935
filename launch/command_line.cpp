#include "launch/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

#include "launch/signals.h"

namespace choir {
namespace {

struct MpiState {
  bool running = false;
  int rank = 0, ranks = 1;
};

MpiState mpi_state() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  MpiState state{.running = initialized == 1 && finalized == 0};
  if (state.running) {
    MPI_Comm_rank(MPI_COMM_WORLD, &state.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &state.ranks);
  }
  return state;
}

/// True if all ranks call this within a few seconds: then all of them have found the same mistake.
bool all_ranks_arrive() {
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  int done = 0;
  for (MPI_Test(&request, &done, MPI_STATUS_IGNORE); done == 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE)) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// After the word "--" nothing is an option. CLI11 loses this when it goes from a verb to its parent. So words after it
// that begin with a dash get a mark until they have become arguments.
constexpr char mark = '\x01';

std::string unmarked(std::string text) {
  std::erase(text, mark);
  return text;
}

/// The words of the command line after the program's name, in reverse order, as CLI11 takes them. Throws ConfigError
/// for an option with nothing after its "=".
std::vector<std::string> marked_words(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  const auto dashes = std::find(words.begin(), words.end(), "--");
  for (auto word = words.begin(); word != dashes; ++word)
    if (word->starts_with("--") && word->ends_with('='))  // CLI11 would take "--resume=" for "--resume"
      throw ConfigError(
          Problem{.what = *word + " has no value", .fix = "write a value after the =, or leave out the ="});
  for (auto word = dashes; word != words.end(); ++word)
    if (word->starts_with('-')) *word = mark + *word;
  if (dashes != words.end()) words.erase(dashes);
  std::reverse(words.begin(), words.end());
  return words;
}

void unmark_arguments(CLI::App& app) {
  for (CLI::Option* option : app.get_options())
    if (option->get_positional()) option->transform(unmarked);
  for (CLI::App* verb : app.get_subcommands({})) unmark_arguments(*verb);
}

/// The message for a mistake in verbs and flags: what, why, and how to fix it.
std::string describe_parse_error(const CLI::App* app, const CLI::Error& error) {
  const CLI::App* verb = app;
  std::string command = app->get_name();
  for (; !verb->get_subcommands().empty(); command += " " + verb->get_name()) verb = verb->get_subcommands().front();
  std::vector<std::string> verbs;
  for (const CLI::App* each : verb->get_subcommands({})) verbs.push_back(each->get_name());
  const std::vector<std::string> rest = app->remaining(true);
  Problem problem{.what = unmarked(error.what()), .fix = fmt::format("see {} --help", command)};
  if (!verbs.empty()) {
    const std::string near = rest.empty() ? "" : nearest(rest.front(), verbs);
    problem = {.what = rest.empty() ? "no verb is named" : fmt::format("there is no verb {}", rest.front()),
               .why = fmt::format("the verbs of {} are {}", command, fmt::join(verbs, ", ")),
               .fix = near.empty() ? problem.fix : fmt::format("did you mean {} {}?", command, near)};
  }
  if (!rest.empty() && std::filesystem::exists(rest.front()))
    problem.fix = fmt::format("write -- before names that begin with a dash: {} ... -- {}", command, rest.front());
  return fmt::format("choir: {}\n", describe(problem));
}

/// Prints once what all ranks have found, and ends the others if only some have found it. Returns `code`.
int mistake_of_all(const std::exception& error, int code) {
  const MpiState mpi = mpi_state();
  const bool everywhere = !mpi.running || mpi.ranks == 1 || all_ranks_arrive();
  if (!everywhere || mpi.rank == 0) {
    const std::string where = everywhere ? "" : "[rank " + std::to_string(mpi.rank) + "] ";
    std::fprintf(stderr, "choir: %s%s\n", where.c_str(), error.what());
  }
  if (!everywhere) MPI_Abort(MPI_COMM_WORLD, code);
  return code;
}

/// Why something written to stdout has not been stored or passed on; "" if everything has.
std::string output_problem() {
  errno = 0;
  bool failed = std::fflush(stdout) != 0;
  // Some file systems report a full disk only when the file is closed.
  if (const int copy = failed ? -1 : dup(STDOUT_FILENO); copy >= 0) failed = close(copy) != 0;
  if (failed) return std::strerror(errno);
  return std::ferror(stdout) != 0 ? "an earlier write has failed" : "";
}

Error unwritten_output(const std::string& why) {
  return Error(
      {.what = "standard output cannot be written", .why = why, .fix = "free space there, or write elsewhere"});
}

/// Returns `code`. Throws Error if the verb's result could not be written to stdout.
int finish_output(const CommandLine& line, int code) {
  const std::string problem = output_problem();
  if (problem.empty()) return code;
  if (line.output_is_the_result) throw unwritten_output(problem);
  std::fprintf(stderr, "choir: lines of standard output are lost: %s; the run's own log has them\n", problem.c_str());
  return code;
}

int failure(const std::exception& error) {
  const MpiState mpi = mpi_state();
  std::fprintf(stderr, "choir: [rank %d/%d] %s\n", mpi.rank, mpi.ranks, error.what());
  std::fflush(stderr);
  if (mpi.running && mpi.ranks > 1) MPI_Abort(MPI_COMM_WORLD, 1);  // the others would wait forever
  return 1;
}

}  // namespace

void write_now(const std::string& text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) < text.size() || std::fflush(stdout) != 0)
    throw unwritten_output(std::strerror(errno));
}

MpiProcess& CommandLine::start_mpi() {
  process_ = std::make_unique<MpiProcess>(&argc, &argv);
  return *process_;
}

void ConfigArguments::add_to(CLI::App& verb, const std::string& what_words) {
  verb.add_option("CONFIG", file, "configuration file (YAML)")->required();
  verb.add_option("WORDS", words, what_words);
}

Config ConfigArguments::read() const { return with_device(read_as_written()); }

Config ConfigArguments::read_as_written() const {
  Config config = read_config(file, words);
  if (config.train.folder.empty()) config.train.folder = "runs/" + std::filesystem::path(file).stem().string();
  return config;
}

int run_command_line(int argc, char** argv) {
  CommandLine line;
  line.app.description("Choir: distributed training of transformers");
  line.argc = argc;
  line.argv = argv;
  line.app.name("choir");
  line.app.require_subcommand(1);
  line.app.failure_message(describe_parse_error);
  line.app.set_version_flag("--version", "choir " CHOIR_VERSION);
  line.app.footer("mpirun -n 8 choir train configs/x.yaml parallel.tensor=4\n\nKeys of the configuration:\n" +
                  describe_keys());
  for (const auto add :
       {add_train_command, add_prepare_command, add_config_command, add_evaluate_command, add_replay_command,
        add_generate_command, add_inspect_command, add_plan_command, add_verify_command, add_checkpoint_command,
        add_calls_command, add_bench_command, add_doctor_command, add_hosts_command, add_progress_command})
    add(line);
  unmark_arguments(line.app);
  ignore_file_size_signal();
  try {
    try {
      line.app.parse(marked_words(argc, argv));
    } catch (const CLI::ParseError& error) {
      return finish_output(line, line.app.exit(error) == 0 ? 0 : 2);
    }
    return finish_output(line, line.run());
  } catch (const ConfigError& error) {
    return mistake_of_all(error, 2);
  } catch (const SharedError& error) {
    return mistake_of_all(error, 1);
  } catch (const std::exception& error) {
    return failure(error);
  }
}

}  // namespace choir
