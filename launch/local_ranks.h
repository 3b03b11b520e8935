// The ranks of this job on this host as the system sees them: what is known of a rank that says nothing, while MPI
// starts.
#pragma once

#include <string>

namespace choir {

/// Lines about the ranks of this job on this host that are stopped or dead, for the time before MPI has started: "rank
/// 1 on node1: stopped while MPI starts, process 4711". "" if there are none, if the system does not say, or if a lower
/// rank of this host runs, which then says it. Reads /proc, so it may wait; any thread may call it.
std::string stopped_local_ranks();

}  // namespace choir
