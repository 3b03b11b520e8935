// Process start: MPI, threads, the device and the mesh of one rank.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "framework/comm/call_ring.h"
#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/core/error.h"
#include "launch/threads.h"

namespace choir {

/// MPI for the lifetime of the program. MPI calls return errors to the caller. A rank that waits in MPI yields its
/// processor.
class MpiProcess {
 public:
  MpiProcess(int* argc, char*** argv);
  ~MpiProcess();
  MpiProcess(const MpiProcess&) = delete;
  MpiProcess& operator=(const MpiProcess&) = delete;

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  int local_ranks() const { return local_ranks_; }  ///< on this machine
  int local_rank() const { return local_rank_; }    ///< among those
  /// This rank's share of the processors of this machine, by what each local rank may use (launch/threads.h).
  int processors() const { return processors_of_rank(processors_, local_rank_); }
  /// True if the processors of all ranks have tiles, or multiply pairs of bf16 fast (kernels/matmul.h).
  bool all_have_tiles() const { return all_have_tiles_; }
  bool all_have_fast_vectors() const { return all_have_fast_vectors_; }
  /// True if other ranks of this machine may use the same processors.
  bool shares_processors() const;

 private:
  int rank_ = 0, ranks_ = 1, local_ranks_ = 1, local_rank_ = 0;
  bool all_have_tiles_ = false, all_have_fast_vectors_ = false;
  std::vector<ProcessorSet> processors_;  // by local rank
};

/// The MPI that choir is linked with: "Open MPI v4.1.4".
std::string mpi_library();

/// The variables that a launcher sets to a rank of the job, the likeliest first.
constexpr const char* rank_variables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};

/// The rank that the launcher has given this process; 0 if it says nothing. MPI need not have started.
int launcher_rank();

/// A problem if another launcher started this process as one of several ranks of which MPI sees only one: each of them
/// would run as rank 0 of 1. Variables that are also set in a batch script or an interactive shell are ignored.
std::vector<Problem> check_launcher(const MpiProcess&);

/// `config` with train.device = auto replaced: by cuda if a GPU is visible, else by cpu. Call it before validate().
Config with_device(Config config);

/// The options of GPU 0 by the configuration; its `say` prints on stderr why something is slower.
GpuOptions gpu_options(const Config&);

/// What multiplies on the CPU, by train.cpu_kernels and by what all processors have (kernels/matmul.h).
kernels::CpuUnit cpu_unit(const Config&, bool has_tiles, bool has_fast_vectors);

/// "matrix products and attention in vectors of AVX-512"; empty if nothing is to be said.
std::string describe(kernels::CpuUnit);

/// The device that train.device asks for, and on rank 0 a line about it on stderr. A GPU rank drives the GPU of its
/// number on the machine; throws ConfigError if there are too few, or two ranks drive the same one. The device has
/// threads_per_rank() threads. Collective.
std::unique_ptr<Device> make_device(const Config&, const MpiProcess&);

}  // namespace choir
