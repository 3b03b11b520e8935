// The double of NCCL (nccl.cpp): NCCL's own functions between simulated GPUs, and faults on demand.
//
// Ranks are processes of one machine or threads of one process; both meet in shared memory. A collective is an
// operation in a stream of the simulated GPU: it runs when it is at the head of its stream on every rank. The call,
// count, type, reduction, root and Choir's label are compared between the ranks: a difference is a finding "collective
// mismatch", and if the calls cannot be executed together, the results are NaN.
//
// Sums run in rank order; each hop is rounded to the type, as on a ring of GPUs. The maximum of a number and NaN is the
// number, as in NCCL's kernels.
#pragma once

#include <nccl.h>

namespace choir::simgpu {

/// The collective, or group of sends and receives, after `after` more by the calling thread is never executed on this
/// rank: the other ranks wait.
void never_arrive(int after);

/// The collective after `after` more by the calling thread never ends, and its communicator reports `error`.
void fail_collective(ncclResult_t error, int after);

}  // namespace choir::simgpu
