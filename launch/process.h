// Process start: MPI, threads, the device and the mesh of one rank.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>

#include "framework/comm/call_ring.h"
#include "framework/comm/mesh.h"
#include "framework/config/config.h"

namespace choir {

/// MPI for the life of the program. Errors of MPI calls come back to the caller.
class MpiProcess {
 public:
  MpiProcess(int* argc, char*** argv);
  ~MpiProcess();
  MpiProcess(const MpiProcess&) = delete;
  MpiProcess& operator=(const MpiProcess&) = delete;

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  int local_ranks() const { return local_ranks_; }  ///< on this machine

 private:
  int rank_ = 0, ranks_ = 1, local_ranks_ = 1;
};

/// True where a person watches what this process prints. mpirun gives every rank a terminal of its own making, whatever
/// becomes of the output: there the terminal of mpirun is asked.
bool output_is_watched();

/// train.threads, or the usable cores divided by the ranks on this machine, at least one.
int threads_per_rank(const Config&, int local_ranks);

/// The device that train.device asks for. Sets the number of OpenMP threads of the calling thread.
std::unique_ptr<Device> make_device(const Config&, int local_ranks);

}  // namespace choir
