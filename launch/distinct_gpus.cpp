#include "launch/distinct_gpus.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>
#include <vector>

#include "framework/core/error.h"
#include "framework/core/host.h"

namespace choir {
namespace {

/// What each rank sends to the others about its GPU. Texts end with a zero; longer ones are cut.
struct RankGpu {
  int node;  ///< the lowest rank of its host
  char host[64], bus[32];
  char nccl_host[64];  ///< NCCL_HOSTID: ranks of one host with different values are on different hosts for NCCL
};

template <std::size_t n>
void copy_text(char (&to)[n], const std::string& from) {
  to[from.copy(to, n - 1)] = 0;
}

RankGpu own_gpu(int rank, const std::string& bus) {
  RankGpu own{.node = rank};
  MPI_Comm local;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local);
  MPI_Allreduce(MPI_IN_PLACE, &own.node, 1, MPI_INT, MPI_MIN, local);
  MPI_Comm_free(&local);
  copy_text(own.host, host_name());
  copy_text(own.bus, bus);
  if (const char* id = std::getenv("NCCL_HOSTID")) copy_text(own.nccl_host, id);
  return own;
}

}  // namespace

void check_distinct_gpus(const MpiProcess& process, const std::string& bus) {
  const RankGpu own = own_gpu(process.rank(), bus);
  std::vector<RankGpu> gpus(static_cast<std::size_t>(process.ranks()));
  MPI_Allgather(&own, sizeof own, MPI_BYTE, gpus.data(), sizeof own, MPI_BYTE, MPI_COMM_WORLD);

  std::map<std::tuple<int, std::string, std::string>, std::vector<int>> ranks_of;
  for (int rank = 0; rank < process.ranks(); ++rank) {
    const RankGpu& gpu = gpus[static_cast<std::size_t>(rank)];
    ranks_of[{gpu.node, gpu.nccl_host, gpu.bus}].push_back(rank);
  }
  const auto shared = std::find_if(ranks_of.begin(), ranks_of.end(), [](const auto& g) { return g.second.size() > 1; });
  if (shared == ranks_of.end()) return;
  const std::vector<int>& ranks = shared->second;
  const RankGpu& gpu = gpus[static_cast<std::size_t>(ranks.front())];
  throw ConfigError(Problem{
      .what = fmt::format("ranks {} on host {} drive the same GPU, {}", fmt::join(ranks, " and "), gpu.host, gpu.bus),
      .why = "one rank drives one GPU, and NCCL refuses two ranks on one",
      .fix = "start one rank for each GPU (mpirun -n), and show each rank all GPUs of its host, or one that no "
             "other rank sees: look at CUDA_VISIBLE_DEVICES, and under Slurm at --gpus-per-task and --gpu-bind"});
}

}  // namespace choir
