#include "launch/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

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

/// True where all ranks come here within a few seconds: then all of them have found the same mistake.
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

/// What, why and how to fix, of a mistake in verbs and flags.
std::string describe_parse_error(const CLI::App* app, const CLI::Error& error) {
  const CLI::App* verb = app;
  std::string command = app->get_name();
  for (; !verb->get_subcommands().empty(); command += " " + verb->get_name()) verb = verb->get_subcommands().front();
  std::vector<std::string> verbs;
  for (const CLI::App* each : verb->get_subcommands({})) verbs.push_back(each->get_name());
  const std::vector<std::string> rest = app->remaining(true);
  Problem problem{.what = error.what(), .fix = fmt::format("{} --help says what there is", command)};
  if (!verbs.empty()) {
    const std::string near = rest.empty() ? "" : nearest(rest.front(), verbs);
    problem = {.what = rest.empty() ? "no verb is named" : fmt::format("there is no verb {}", rest.front()),
               .why = fmt::format("{} does one of {}", command, fmt::join(verbs, ", ")),
               .fix = near.empty() ? problem.fix : fmt::format("did you mean {} {}?", command, near)};
  }
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

int failure(const std::exception& error) {
  const MpiState mpi = mpi_state();
  std::fprintf(stderr, "choir: [rank %d/%d] %s\n", mpi.rank, mpi.ranks, error.what());
  std::fflush(stderr);
  if (mpi.running && mpi.ranks > 1) MPI_Abort(MPI_COMM_WORLD, 1);  // the others would wait for ever
  return 1;
}

}  // namespace

MpiProcess& CommandLine::start_mpi() {
  process_ = std::make_unique<MpiProcess>(&argc, &argv);
  return *process_;
}

void ConfigArguments::add_to(CLI::App& verb, const std::string& what_words) {
  verb.add_option("CONFIG", file, "configuration file (YAML)")->required();
  verb.add_option("WORDS", words, what_words);
}

Config ConfigArguments::read() const {
  Config config = read_config(file, words);
  if (config.train.folder.empty()) config.train.folder = "runs/" + std::filesystem::path(file).stem().string();
  return with_device(std::move(config));
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
  for (const auto add : {add_train_command, add_prepare_command, add_config_command, add_evaluate_command,
                         add_generate_command, add_plan_command, add_verify_command, add_checkpoint_command,
                         add_calls_command, add_bench_command, add_doctor_command})
    add(line);
  try {
    line.app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return line.app.exit(error) == 0 ? 0 : 2;
  }
  try {
    return line.run();
  } catch (const ConfigError& error) {
    return mistake_of_all(error, 2);
  } catch (const SharedError& error) {
    return mistake_of_all(error, 1);
  } catch (const std::exception& error) {
    return failure(error);
  }
}

}  // namespace choir
