#include "kernels/cpu/team.h"

#include <omp.h>

#include <stdexcept>
#include <string>

namespace choir::kernels::cpu {

int largest_team() { return omp_get_thread_limit(); }

int settle_team(int threads) {
  omp_set_dynamic(0);
  omp_set_max_active_levels(1);
  omp_set_num_threads(threads);
  int came = 0;
#pragma omp parallel num_threads(threads) reduction(+ : came)
  came += 1;
  return came;
}

PlannedTeam::PlannedTeam(int threads) : threads_(threads), before_(omp_get_max_threads()) {
  omp_set_num_threads(threads);
}

PlannedTeam::~PlannedTeam() { omp_set_num_threads(before_); }

void PlannedTeam::check() const {
  if (threads_ == 1) return;
  if (omp_get_dynamic() == 0 && omp_get_max_active_levels() > 0 && omp_in_parallel() == 0 && threads_ <= largest_team())
    return;
  throw std::runtime_error("a team of " + std::to_string(threads_) +
                           " threads is planned, but this thread can get a smaller one: settle_team() was not called "
                           "or found fewer threads");
}

}  // namespace choir::kernels::cpu
