// choir doctor: what this machine has, and whether Choir can use it.
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
#include "framework/core/quantity.h"
#include "framework/core/team.h"
#include "framework/data/hdf5_file.h"
#include "kernels/matmul.h"
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

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unnamed";
}

Check processor_check() {
  const std::int64_t targets = hwy::SupportedTargets();
  const std::int64_t best = targets & -targets;  // Highway gives better targets lower bits
  const bool bf16 = kernels::cpu::has_native_bf16();
  return {.state = bf16 ? State::good : State::limited,
          .name = "processor",
          .text = fmt::format(
              "{}, {}, {}, {} bf16 instructions, {}", processor_name(),
              quantity(std::thread::hardware_concurrency(), "thread"), hwy::TargetName(best), bf16 ? "with" : "no",
              kernels::cpu::has_tiles() ? "tiles (train.cpu_kernels=tiles uses them)" : "no tiles (AMX)"),
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
  const std::string path = fmt::format("{}/.doctor-{}.h5", folder, getpid());
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

int doctor(CommandLine& line, const std::string& folder) {
  const MpiProcess& process = line.start_mpi();
  std::vector<Check> checks = host_checks(folder);
  checks.push_back(threads_check(process));
  for (const Problem& problem : check_launcher(process))
    checks.push_back({.state = State::broken, .name = "launcher", .text = problem.what, .fix = problem.fix});
  if constexpr (kernels::built_with_cuda) {
    const std::vector<Check> gpus = gpu_checks();
    checks.insert(checks.end(), gpus.begin(), gpus.end());
  }
  fmt::print("What this machine has, and whether Choir can use it:\n\n{}\n{}", describe(checks), what_has_run);
  return std::any_of(checks.begin(), checks.end(), [](const Check& c) { return c.state == State::broken; }) ? 1 : 0;
}

}  // namespace

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
  auto folder = std::make_shared<std::string>("runs");
  verb->add_option("FOLDER", *folder, "where runs are to be written")->capture_default_str();
  verb->callback([&line, folder] { line.run = [&line, folder] { return doctor(line, *folder); }; });
}

}  // namespace choir
