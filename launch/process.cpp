#include "launch/process.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "framework/core/error.h"
#include "framework/core/quantity.h"
#include "kernels/matmul.h"
#include "launch/distinct_gpus.h"

namespace choir {

MpiProcess::MpiProcess(int* argc, char*** argv) {
  // A rank that waits calls MPI in a loop. Beside any other busy process it would keep the processor from the ranks
  // that it waits for. With this setting Open MPI calls sched_yield() in the loop. What the user has set (mpirun --mca
  // mpi_yield_when_idle 0) stays.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
  if (provided < MPI_THREAD_SERIALIZED)
    throw Error({.what = "this MPI does not allow calls from a thread other than the main one",
                 .why = "with train.streams: threaded all MPI calls are on the communication stream's thread",
                 .fix = "use an MPI built with thread support (MPI_THREAD_SERIALIZED)"});
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
  MPI_Comm local;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local);
  MPI_Comm_size(local, &local_ranks_);
  MPI_Comm_rank(local, &local_rank_);
  const ProcessorSet own = usable_processors();
  processors_.resize(static_cast<std::size_t>(local_ranks_));
  MPI_Allgather(&own, sizeof(own), MPI_BYTE, processors_.data(), sizeof(own), MPI_BYTE, local);
  MPI_Comm_free(&local);
  const bool own_tiles = kernels::cpu::has_tiles(), own_fast_vectors = kernels::cpu::has_fast_vectors();
  MPI_Allreduce(&own_tiles, &all_have_tiles_, 1, MPI_CXX_BOOL, MPI_LAND, MPI_COMM_WORLD);
  MPI_Allreduce(&own_fast_vectors, &all_have_fast_vectors_, 1, MPI_CXX_BOOL, MPI_LAND, MPI_COMM_WORLD);
}

MpiProcess::~MpiProcess() { MPI_Finalize(); }

bool MpiProcess::shares_processors() const {
  const auto own = static_cast<std::size_t>(local_rank_);
  for (std::size_t i = 0; i < processors_.size(); ++i)
    if (i != own && (processors_[i] & processors_[own]).any()) return true;
  return false;
}

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text).substr(0, std::string(text).find_first_of(",\n"));
}

/// The number in an environment variable; 0 if it is not set.
static int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : 0;
}

int launcher_rank() {
  for (const char* variable : rank_variables)
    if (const int rank = number_in(variable); rank > 0) return rank;
  return 0;
}

std::vector<Problem> check_launcher(const MpiProcess& process) {
  // Slurm sets SLURM_NTASKS, SLURM_PROCID and others in a batch script too; only srun sets those of a step. For an
  // interactive step (srun --pty) it also sets that of a terminal; such a step runs one shell for any number of tasks.
  struct Launcher {
    const char *name, *size, *interactive;
  };
  constexpr Launcher launchers[] = {{"mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE", nullptr},
                                    {"mpiexec of the MPICH family (MPICH, Intel MPI, MVAPICH)", "PMI_SIZE", nullptr},
                                    {"srun of Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PTY_PORT"}};
  if (process.ranks() > 1 || number_in("OMPI_COMM_WORLD_SIZE") == 1) return {};  // started by the launcher of its MPI
  for (const Launcher& launcher : launchers) {
    const int size = number_in(launcher.size);
    if (size <= 1 || (launcher.interactive && std::getenv(launcher.interactive))) continue;
    return {
        {.what = fmt::format("{} started this process as one of {} ({} = {}), but {} sees one rank", launcher.name,
                             size, launcher.size, size, mpi_library()),
         .why =
             fmt::format("choir is built with {}, which does not see that launcher's ranks; each of the {} processes "
                         "would train alone, all in one run folder",
                         mpi_library(), size),
         .fix = fmt::format("start it with the mpirun of {} (under Slurm also: srun --mpi=pmix); if this is meant to "
                            "be a run of one rank, unset {}",
                            mpi_library(), launcher.size)}};
  }
  return {};
}

Config with_device(Config config) {
  std::string reason;
  if (config.train.device == TrainDevice::automatic)
    config.train.device = cuda::visible_gpus(reason) > 0 ? TrainDevice::cuda : TrainDevice::cpu;
  return config;
}

kernels::CpuUnit cpu_unit(const Config& config, bool has_tiles, bool has_fast_vectors) {
  using enum kernels::CpuUnit;
  if (config.train.device == TrainDevice::cuda || config.train.cpu_kernels == CpuKernels::onednn) return library;
  const bool automatic = config.train.cpu_kernels == CpuKernels::automatic;
  if (config.train.precision != Precision::f32 && (has_tiles || !automatic)) return tiles;
  return automatic && has_fast_vectors ? vectors : library;
}

std::string describe(kernels::CpuUnit unit) {
  switch (unit) {
    case kernels::CpuUnit::library:
      break;
    case kernels::CpuUnit::vectors:
      return "matrix products and attention in vectors of AVX-512";
    case kernels::CpuUnit::tiles:
      return "matrix products and attention of bf16 on tiles";
  }
  return "";
}

/// Which visible GPU this rank drives. A launcher can show each rank all GPUs of the machine, or only its own.
static int choose_gpu(const MpiProcess& process) {
  std::string reason;
  const int visible = cuda::visible_gpus(reason);
  if (visible == 0)
    throw ConfigError(
        Problem{.what = "train.device = cuda, but rank " + std::to_string(process.rank()) + " sees no GPU: " + reason,
                .fix = "`choir doctor` shows what the machine has; or set train.device=cpu"});
  if (visible > 1 && process.local_ranks() > visible)
    throw ConfigError(Problem{
        .what = quantity(process.local_ranks(), "rank") + " on one machine, but only " + quantity(visible, "GPU"),
        .why = "one rank drives one GPU",
        .fix = "start at most " + quantity(visible, "rank") + " on each machine"});
  return visible == 1 ? 0 : process.local_rank();
}

GpuOptions gpu_options(const Config& config) {
  const TrainAttentionConfig& attention = config.train.attention;
  return {.attention = attention.implementation,
          .deterministic_attention = attention.deterministic,
          .say = [](const std::string& text) { std::fprintf(stderr, "choir: %s\n", text.c_str()); }};
}

static std::unique_ptr<Device> make_gpu_device(const Config& config, const MpiProcess& process, int threads) {
  const bool speaks = process.rank() == 0;
  GpuOptions options = gpu_options(config);
  options.index = choose_gpu(process);
  if (!speaks) options.say = {};
  const GpuFacts facts = cuda::gpu_facts(options.index);
  check_distinct_gpus(process, facts.bus);
  if (config.train.precision == Precision::fp8 && facts.compute_capability != 90)
    throw ConfigError(Problem{
        .what = fmt::format("train.precision = fp8, but rank {} has {} (sm_{})", process.rank(), facts.name,
                            facts.compute_capability),
        .why =
            "cuBLASLt multiplies numbers of 8 bits with a scale for each row on GPUs of compute capability 9.0 only: "
            "H100, H200, GH200",
        .fix = "set train.precision to bf16"});
  if (speaks)
    std::fprintf(stderr, "choir: rank 0 drives GPU %d: %s, %.1f GB, sm_%d\n", options.index, facts.name.c_str(),
                 static_cast<double>(facts.memory_bytes) / 1e9, facts.compute_capability);
  return std::make_unique<Device>(options, threads);
}

std::unique_ptr<Device> make_device(const Config& config, const MpiProcess& process) {
  const int threads = threads_per_rank(config, process.processors()).threads;
  if (process.rank() == 0 && process.shares_processors() && omp_get_num_places() > 0)
    std::fprintf(stderr,
                 "choir: OpenMP binds the threads of each rank to the same processors of this machine: unset "
                 "OMP_PROC_BIND, OMP_PLACES and GOMP_CPU_AFFINITY, or give each rank its own (mpirun --map-by "
                 "slot:PE=N)\n");
  if (config.train.device == TrainDevice::cuda) return make_gpu_device(config, process, threads);
  const kernels::CpuUnit unit = cpu_unit(config, process.all_have_tiles(), process.all_have_fast_vectors());
  if (unit == kernels::CpuUnit::tiles &&
      !process.all_have_tiles())  // validate() has refused only where they are missing
    throw ConfigError(Problem{.what = "train.cpu_kernels = tiles, but the processors of some ranks have no tiles",
                              .why = "all ranks compute with the same kernels",
                              .fix = "set train.cpu_kernels to auto or onednn, or start on hosts that have tiles"});
  return std::make_unique<Device>(threads, config.train.streams, unit);
}

}  // namespace choir
