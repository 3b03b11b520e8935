// The number of threads of a rank: what the user asks for, else the processors that it may use.
#pragma once

#include <bitset>
#include <string>
#include <vector>

#include "framework/config/config.h"

namespace choir {

/// Bit i: processor i of the machine. Linux has up to 8192.
using ProcessorSet = std::bitset<8192>;

/// The processors that the threads of this process may use, even if OpenMP has bound the calling thread to a few.
ProcessorSet usable_processors();

/// The number of processors for rank `rank` of a machine whose ranks may use these sets; at least one. A processor that
/// n ranks may use counts as 1/n: a rank with a set of its own gets all of it, n ranks that share a set an n-th each.
int processors_of_rank(const std::vector<ProcessorSet>& sets, int rank);

struct ThreadCount {
  int threads = 1;
  std::string source;  ///< what the number comes from, for messages: "train.threads"
};

/// train.threads, else OMP_NUM_THREADS, else as many as `processors`, up to OMP_THREAD_LIMIT. Throws ConfigError if the
/// user asks for more than that limit, or if OMP_NUM_THREADS is not a number of threads.
ThreadCount threads_per_rank(const Config&, int processors);

}  // namespace choir
