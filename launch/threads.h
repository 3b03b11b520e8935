// How many threads a rank gets: what the user asks for, else the processors that it may use.
#pragma once

#include <bitset>
#include <string>
#include <vector>

#include "framework/config/config.h"

namespace choir {

/// Bit i: processor i of the machine. Linux has up to 8192.
using ProcessorSet = std::bitset<8192>;

/// Those that the threads of this process may use, whether or not OpenMP has bound the calling thread to some of them.
ProcessorSet usable_processors();

/// The processors that fall to rank `rank` of a machine whose ranks may use these sets: a processor that n ranks may
/// use counts as 1/n. So a rank with a set of its own has all of it, and n ranks that share a set have an n-th each, at
/// least one.
int processors_of_rank(const std::vector<ProcessorSet>& sets, int rank);

struct ThreadCount {
  int threads = 1;
  std::string source;  ///< what decided, for a message: "train.threads"
};

/// train.threads, else OMP_NUM_THREADS, else as many as `processors`, up to OMP_THREAD_LIMIT. Throws ConfigError if the
/// user asks for more than that limit, or if OMP_NUM_THREADS is not a number of threads.
ThreadCount threads_per_rank(const Config&, int processors);

}  // namespace choir
