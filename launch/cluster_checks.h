// What `mpirun ... choir doctor` reports about all hosts of a job together: are they alike, and which host, or pair of
// ranks, is slower than the others?
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "launch/burn.h"

namespace choir {

/// Two neighbouring ranks of an axis, and what was measured between them, through MPI on host memory.
struct Link {
  int a = 0, b = 0;
  std::string host_a, host_b;
  double latency = 0;           ///< seconds, of a message of 8 bytes one way
  double bytes_per_second = 0;  ///< of the slower direction
};

/// A value of each host, of which more is better.
struct HostSpeed {
  std::string host;
  double bytes_per_second = 0;
};

/// The links of one axis. Links within a host and between hosts are compared apart: with half of the bandwidth of the
/// fastest, or with three times the latency of the best and 50 us more, a link is slow and its ranks are named; or the
/// host, if its best link to another host is slow beside the worst of all others.
Check judge_links(const std::string& axis, const std::vector<Link>& links);

/// Names the hosts that write at less than half the speed of the fastest.
Check judge_writes(const std::string& folder, const std::vector<HostSpeed>& hosts);

/// `what` each host has; names those that differ from most of them. `hosts` and `versions` are parallel.
Check judge_alike(const std::string& name, const std::vector<std::string>& hosts,
                  const std::vector<std::string>& versions);

/// Seconds that the clock of each host is ahead of rank 0's; an error of up to `uncertainty` seconds each.
Check judge_clocks(const std::vector<std::string>& hosts, const std::vector<double>& ahead, double uncertainty);

/// All of these, of the ranks of MPI_COMM_WORLD: clocks, `version` and `burn` of each rank, the links of each axis of
/// `shape` that has several ranks, and a file of `bytes` written and synced in `folder`, which exists, by one rank of
/// each host, all at the same time. Collective. On rank 0 the checks; on others nothing.
std::vector<Check> cluster_checks(const std::string& folder, const std::string& version, const MeshShape& shape,
                                  const Burn& burn, std::int64_t bytes = 64 << 20);

}  // namespace choir
