#include "framework/core/team.h"

#include <fmt/format.h>

#include "framework/core/error.h"
#include "kernels/cpu/team.h"

namespace choir {

void settle_team(int threads) {
  const int came = kernels::cpu::settle_team(threads), largest = kernels::cpu::largest_team();
  if (came == threads) return;
  const std::string fix = fmt::format("set train.threads={}", came);
  if (largest < threads)
    throw ConfigError(Problem{.what = fmt::format("{} threads are planned, but OpenMP starts {}", threads, came),
                              .why = fmt::format("OMP_THREAD_LIMIT = {}", largest),
                              .fix = fix + ", or unset OMP_THREAD_LIMIT"});
  throw ConfigError(Problem{.what = fmt::format("{} threads are planned, but OpenMP starts {}", threads, came),
                            .why = "a setting of the OpenMP run-time limits its teams",
                            .fix = fix + ", or unset the variables OMP_* and KMP_*"});
}

}  // namespace choir
