// choir doctor [FOLDER] [key=value ...]: what this machine has, and whether Choir can use it. Under mpirun: all hosts,
// and the network between them.
#include <fmt/format.h>
#include <hdf5.h>
#include <hwy/highway.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <thread>

#include "framework/core/error.h"
#include "framework/core/host.h"
#include "framework/core/quantity.h"
#include "framework/core/team.h"
#include "framework/data/hdf5_file.h"
#include "framework/train/trainer.h"
#include "kernels/matmul.h"
#include "kernels/tiles.h"
#include "launch/burn.h"
#include "launch/cluster_checks.h"
#include "launch/command_line.h"
#include "launch/doctor.h"

namespace choir {
namespace {

using State = Check::State;

Check mpi_check() {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  return {
      .name = "MPI",
      .text = fmt::format("{}; threads: {}", mpi_library(), level == MPI_THREAD_MULTIPLE ? "multiple" : "serialized")};
}

Check hdf5_check_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return {.name = "HDF5", .text = fmt::format("{}.{}.{}, parallel", major, minor, release)};
}

Check processor_check() {
  const std::int64_t targets = hwy::SupportedTargets();
  const std::int64_t best = targets & -targets;  // Highway gives better targets lower bits
  const bool bf16 = kernels::cpu::has_native_bf16();
  const kernels::cpu::Tiles tiles = kernels::cpu::examine_tiles();
  if (tiles == kernels::cpu::Tiles::wrong)
    return {.state = State::limited,
            .name = "processor",
            .text = fmt::format("{}: {}", processor_name(), describe(tiles)),
            .fix = "Choir does not use them, but other programs may: let the machine be checked"};
  return {.state = bf16 ? State::good : State::limited,
          .name = "processor",
          .text = fmt::format(
              "{}, {}, {}, {} bf16 instructions{}, {}", processor_name(),
              quantity(std::thread::hardware_concurrency(), "thread"), hwy::TargetName(best), bf16 ? "with" : "no",
              kernels::cpu::has_fast_vectors() ? " (matrix products and attention in vectors of AVX-512)" : "",
              tiles == kernels::cpu::Tiles::right ? "tiles (matrix products and attention of bf16)" : "no tiles (AMX)"),
          .fix = bf16 ? ""
                      : "f32 runs at full speed; train.precision=bf16 on this CPU needs train.emulate_bf16=true "
                        "(the same values, slowly)"};
}

/// The threads that a run gets without train.threads, checked by starting them.
Check threads_check(const MpiProcess& process) {
  try {
    const ThreadCount count = threads_per_rank({}, process.processors());
    settle_team(count.threads);
    return {.name = "threads",
            .text = fmt::format("{} a rank, from {}; {} processors here, {}", count.threads, count.source,
                                usable_processors().count(), quantity(process.local_ranks(), "rank"))};
  } catch (const ConfigError& error) {
    const Problem& problem = error.problems().front();
    return {.state = State::broken, .name = "threads", .text = problem.what, .fix = problem.fix};
  }
}

Check toolkit_check() {
  if (kernels::built_with_cuda)
    return {.name = "CUDA toolkit", .text = "choir was built with CUDA " CHOIR_CUDA_VERSION};
  return {
      .state = State::limited,
      .name = "CUDA toolkit",
      .text = "choir was built without CUDA: it runs on the CPU",
      .fix = "to use GPUs, install the CUDA toolkit (nvcc, cuBLASLt) and NCCL, remove the build folder, build again"};
}

/// A file that is written through parallel HDF5, as an export is, and read back.
void write_and_read(const std::string& path) {
  const std::vector<std::int32_t> values = {3, 1, 4, 1, 5};
  const Hdf5Silence silence;
  {
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
    hdf5_check(H5Pset_fapl_mpio(access, MPI_COMM_SELF, MPI_INFO_NULL), "H5Pset_fapl_mpio");
    Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose, "H5Fcreate");
    Hdf5Handle dataset = create_dataset(file, "values", H5T_STD_I32LE, values.size());
    hdf5_check(H5Dwrite(dataset, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dwrite");
    dataset.close();
    file.close();
  }
  const Hdf5Handle file = open_hdf5(path);
  const Hdf5Handle dataset(H5Dopen2(file, "values", H5P_DEFAULT), H5Dclose, "H5Dopen2");
  std::vector<std::int32_t> read(values.size());
  hdf5_check(H5Dread(dataset, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, read.data()), "H5Dread");
  if (read != values) throw Error({.what = "what was read back is not what was written"});
}

Check folder_check(const std::string& folder) {
  const std::string path = fmt::format("{}/.doctor-{}-{}.h5", folder, host_name(), getpid());
  Check check{.name = "run folder"};
  std::error_code ignored;
  bool made = false;
  try {
    made = std::filesystem::create_directories(folder);
    write_and_read(path);
    const double free = static_cast<double>(std::filesystem::space(folder).available);
    check.text = fmt::format("{}: a file was written and read back; {:.1f} GB free", folder, free / 1e9);
  } catch (const std::exception& error) {
    check = {.state = State::broken,
             .name = "run folder",
             .text = fmt::format("{}: {}", folder, error.what()),
             .fix = "name a folder that can be written to: choir doctor FOLDER, and train.folder=FOLDER"};
  }
  std::filesystem::remove(path, ignored);
  if (made) std::filesystem::remove(folder, ignored);
  return check;
}

std::string mark(State state) {
  switch (state) {
    case State::limited:
      return "limited";
    case State::broken:
      return "BROKEN";
    case State::good:
      break;
  }
  return "ok";
}

constexpr const char* what_has_run =
    "Choir's own tests run everything on CPU ranks. They run the CUDA code on a simulated GPU, from the PTX for a "
    "real\n"
    "one, with doubles of cuBLASLt and NCCL. The real cuDNN builds its plans, which are not run. A line 'GPU N' above\n"
    "shows what that GPU of this machine has just computed.\n";

struct Arguments {
  std::string folder = "runs";
  std::vector<std::string> words;  // parallel.tensor=2, ...
};

Arguments sorted(const std::vector<std::string>& words) {
  Arguments arguments;
  std::vector<std::string> folders;
  for (const std::string& word : words)
    (word.find('=') == std::string::npos ? folders : arguments.words).push_back(word);
  if (folders.size() > 1)
    throw ConfigError(Problem{.what = "choir doctor takes one FOLDER: " + folders[0] + " or " + folders[1],
                              .fix = "name the folder where runs are to be written"});
  if (!folders.empty()) arguments.folder = folders.front();
  return arguments;
}

bool any_broken(const std::vector<Check>& checks) {
  return std::any_of(checks.begin(), checks.end(), [](const Check& c) { return c.state == State::broken; });
}

/// The layout that is asked for, on the ranks of this job.
MeshShape layout(const std::vector<std::string>& words, int ranks) {
  const Config config = read_config("", words);
  if (const std::int64_t copy = config.parallel.ranks_of_a_copy(); ranks % copy != 0)
    throw ConfigError(
        Problem{.what = fmt::format("{} cannot have tensor, context and pipeline ranks of which {} make one "
                                    "copy of the model",
                                    quantity(ranks, "rank"), copy),
                .fix = fmt::format("start a multiple of {}, or change parallel.tensor, parallel.context "
                                   "or parallel.pipeline",
                                   quantity(copy, "rank"))});
  return mesh_shape(config, ranks);
}

/// On the GPU of this rank if it sees one, else on its processor cores.
Burn burn_here(const MpiProcess& process) {
  constexpr double seconds = 2;
  try {
    const int threads = threads_per_rank({}, process.processors()).threads;
    std::string reason;
    if (const int gpus = cuda::visible_gpus(reason); gpus > 0) {
      Device gpu(GpuOptions{.index = process.local_rank() % gpus}, threads);
      return burn(gpu, seconds);
    }
    Device cores(threads);
    return burn(cores, seconds);
  } catch (const std::exception& error) {
    return {.host = host_name(), .problem = error.what()};
  }
}

int doctor(CommandLine& line, const Arguments& arguments) {
  const MpiProcess& process = line.start_mpi();
  const MeshShape shape = layout(arguments.words, process.ranks());
  // One rank makes the folder and removes it, since all hosts may share it. What is wrong with it is said by a check.
  std::error_code ignored;
  const bool made = process.rank() == 0 && std::filesystem::create_directories(arguments.folder, ignored);
  MPI_Barrier(MPI_COMM_WORLD);
  std::vector<Check> checks;
  if (process.local_rank() == 0) checks = host_checks(arguments.folder);
  checks.push_back(threads_check(process));
  for (const Problem& problem : check_launcher(process))
    checks.push_back({.state = State::broken, .name = "launcher", .text = problem.what, .fix = problem.fix});
  if constexpr (kernels::built_with_cuda) {
    if (process.local_rank() == 0) {
      const std::vector<Check> gpus = gpu_checks();
      checks.insert(checks.end(), gpus.begin(), gpus.end());
    }
  }
  int broken = any_broken(checks) ? 1 : 0;
  if (process.rank() == 0)
    fmt::print("What {} has, and whether Choir can use it:\n\n{}\n",
               process.ranks() == 1 ? "this machine" : host_name(), describe(checks));
  else if (broken != 0)
    fmt::print(stderr, "On {} (rank {}):\n{}", host_name(), process.rank(), describe(checks));
  if (process.ranks() > 1) {
    const std::string version =
        fmt::format("choir {}, {}, HDF5 {}", CHOIR_VERSION, mpi_check().text, hdf5_check_version().text);
    const std::vector<Check> together = cluster_checks(arguments.folder, version, shape, burn_here(process));
    if (process.rank() == 0)
      fmt::print("All {} together:\n\n{}\n", quantity(process.ranks(), "rank"), describe(together));
    if (any_broken(together)) broken = 1;
    MPI_Allreduce(MPI_IN_PLACE, &broken, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  }
  if (made) std::filesystem::remove(arguments.folder, ignored);
  if (process.rank() == 0) fmt::print("{}", what_has_run);
  return broken;
}

}  // namespace

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unnamed";
}

std::vector<Check> host_checks(const std::string& folder) {
  return {mpi_check(), hdf5_check_version(), processor_check(), folder_check(folder), toolkit_check()};
}

std::string describe(const std::vector<Check>& checks) {
  std::string text;
  for (const Check& check : checks) {
    text += fmt::format("{:<14}{:<9}{}\n", check.name, mark(check.state), check.text);
    if (!check.fix.empty()) text += fmt::format("{:<23}{}\n", "", check.fix);
  }
  return text;
}

void add_doctor_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("doctor", "what this machine has, and whether Choir can use it");
  auto words = std::make_shared<std::vector<std::string>>();
  verb->add_option("FOLDER", *words,
                   "where runs are to be written (default: runs), and under mpirun the layout: parallel.tensor=2 ...");
  verb->callback([&line, words] { line.run = [&line, words] { return doctor(line, sorted(*words)); }; });
}

}  // namespace choir
