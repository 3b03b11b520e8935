// choir bench collectives: the speed of the seven verbs between all ranks of the job, by message size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"

namespace choir {

struct CollectiveBench {
  struct Row {
    std::string verb;
    std::int64_t bytes = 0;       ///< of the larger tensor of a rank
    double seconds = 0;           ///< of one call, median; on the slowest rank
    double bytes_per_second = 0;  ///< over the link of each rank
  };
  int ranks = 1;
  std::vector<Row> rows;
};

/// Collective over all ranks of `mesh`. Sizes from 4 KiB to `largest_bytes` in steps of 8.
///
/// With n ranks, a link carries 2 (n - 1) / n of the tensor for all_reduce, (n - 1) / n for reduce_scatter, all_gather
/// and all_to_all, and all of it for broadcast and exchange. This is the "bus bandwidth" of nccl-tests: comparable
/// between verbs and numbers of ranks, and with the link's own rate.
CollectiveBench bench_collectives(Device& device, Mesh& mesh, std::int64_t largest_bytes);

std::string describe(const CollectiveBench&);
std::string to_json(const CollectiveBench&);

}  // namespace choir
