#include "launch/process.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "framework/core/error.h"

namespace choir {

MpiProcess::MpiProcess(int* argc, char*** argv) {
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
  if (provided < MPI_THREAD_SERIALIZED)
    throw Error({.what = "this MPI does not let a thread other than the main one call it",
                 .why = "with train.streams: threaded all MPI calls are on the communication stream's thread",
                 .fix = "use an MPI built with thread support (MPI_THREAD_SERIALIZED)"});
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
  MPI_Comm local;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local);
  MPI_Comm_size(local, &local_ranks_);
  MPI_Comm_free(&local);
}

MpiProcess::~MpiProcess() { MPI_Finalize(); }

bool output_is_watched() {
  if (isatty(STDOUT_FILENO) != 1) return false;
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return true;
  std::error_code error;
  const auto out = std::filesystem::read_symlink("/proc/" + std::to_string(getppid()) + "/fd/1", error).string();
  return out.starts_with("/dev/pts/") || out.starts_with("/dev/tty");
}

int threads_per_rank(const Config& config, int local_ranks) {
  if (config.train.threads > 0) return static_cast<int>(config.train.threads);
  cpu_set_t usable;
  CPU_ZERO(&usable);
  const int cores = sched_getaffinity(0, sizeof(usable), &usable) == 0 ? CPU_COUNT(&usable) : 1;
  return std::max(1, cores / local_ranks);
}

std::unique_ptr<Device> make_device(const Config& config, int local_ranks) {
  const int threads = threads_per_rank(config, local_ranks);
  omp_set_num_threads(threads);
  const StreamMode mode = config.train.streams == "threaded" ? StreamMode::threaded : StreamMode::immediate;
  return std::make_unique<Device>(DeviceKind::cpu, threads, mode);
}

}  // namespace choir
