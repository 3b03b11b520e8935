#include "launch/threads.h"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "framework/core/error.h"
#include "kernels/cpu/team.h"

namespace choir {
namespace {

std::string_view without_leading_blanks(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  return text;
}

/// The first number of OMP_NUM_THREADS ("8" or "8,2": one for each level of nesting); 0 if it is not set or empty.
int omp_num_threads() {
  const char* variable = std::getenv("OMP_NUM_THREADS");
  const std::string_view text = without_leading_blanks(variable ? variable : "");
  if (text.empty()) return 0;
  int threads = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), threads);
  const std::string_view rest = without_leading_blanks(text.substr(static_cast<std::size_t>(end - text.data())));
  if (error != std::errc{} || threads < 1 || threads > 65536 || !(rest.empty() || rest.front() == ','))
    throw ConfigError(Problem{.what = fmt::format("OMP_NUM_THREADS = {} is not a number of threads", variable),
                              .why = "without train.threads it says how many threads a rank has",
                              .fix = "set it to a number from 1 to 65536, unset it, or set train.threads"});
  return threads;
}

}  // namespace

ProcessorSet usable_processors() {
  ProcessorSet set;
  // With OMP_PROC_BIND or OMP_PLACES the OpenMP run-time has bound the first thread to the first place when the program
  // was loaded. Its threads may use all places together.
  for (int place = 0; place < omp_get_num_places(); ++place) {
    std::vector<int> processors(static_cast<std::size_t>(omp_get_place_num_procs(place)));
    omp_get_place_proc_ids(place, processors.data());
    for (const int processor : processors) set.set(static_cast<std::size_t>(processor));
  }
  if (set.any()) return set;
  std::array<cpu_set_t, ProcessorSet{}.size() / CPU_SETSIZE> mask{};
  if (sched_getaffinity(0, sizeof(mask), mask.data()) != 0) return set;
  for (std::size_t i = 0; i < set.size(); ++i) set[i] = CPU_ISSET_S(i, sizeof(mask), mask.data());
  return set;
}

int processors_of_rank(const std::vector<ProcessorSet>& sets, int rank) {
  const ProcessorSet& own = sets[static_cast<std::size_t>(rank)];
  double share = 1e-6;  // so that three thirds make one in spite of rounding
  for (std::size_t i = 0; i < own.size(); ++i)
    if (own[i])
      share +=
          1.0 / static_cast<double>(std::count_if(sets.begin(), sets.end(), [&](const auto& set) { return set[i]; }));
  return std::max(1, static_cast<int>(share));
}

ThreadCount threads_per_rank(const Config& config, int processors) {
  const int limit = kernels::cpu::largest_team();
  const auto asked = [&](int threads, const char* source) {
    if (threads > limit)
      throw ConfigError(Problem{.what = fmt::format("{} = {}, but OMP_THREAD_LIMIT = {}", source, threads, limit),
                                .why = "OpenMP does not start more threads than its limit",
                                .fix = fmt::format("set train.threads={}, or unset OMP_THREAD_LIMIT", limit)});
    return ThreadCount{threads, source};
  };
  if (config.train.threads > 0) return asked(static_cast<int>(config.train.threads), "train.threads");
  if (const int threads = omp_num_threads()) return asked(threads, "OMP_NUM_THREADS");
  return limit < processors ? ThreadCount{limit, "OMP_THREAD_LIMIT"} : ThreadCount{processors, "its processors"};
}

}  // namespace choir
