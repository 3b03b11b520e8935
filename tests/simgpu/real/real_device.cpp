// The tests of other folders on real GPUs: each rank has one, of those that it sees.
#include <mpi.h>

#include "tests/support/device.h"

namespace choir::tests {

std::unique_ptr<Device> make_device(StreamMode) {
  std::string reason;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return std::make_unique<Device>(GpuOptions{.index = rank % cuda::visible_gpus(reason)}, 1);
}

std::string reason_to_skip() {
  std::string reason;
  return cuda::visible_gpus(reason) > 0 ? std::string() : reason;
}

bool device_is_simulated() { return false; }

}  // namespace choir::tests
