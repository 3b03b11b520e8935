// The OpenMP teams of a thread: how many threads its parallel regions get.
//
// OpenMP keeps these settings for each thread. A new thread takes them from the environment, where OMP_DYNAMIC,
// OMP_MAX_ACTIVE_LEVELS and OMP_THREAD_LIMIT can make a team smaller than a region requests. Choir's own loops are
// correct with any team. oneDNN is not: it plans for omp_get_max_threads() threads; with fewer it leaves parts of its
// result unwritten and reports success. So every thread that computes calls settle_team() first, and a library that
// plans threads runs under PlannedTeam.
#pragma once

namespace choir::kernels::cpu {

/// The most threads that a team of this process can have: OMP_THREAD_LIMIT, or the largest int without it.
int largest_team();

/// From now on a parallel region of the calling thread gets the number of threads that it requests, up to
/// largest_team(), and `threads` by default. Opens a region of `threads` threads and returns how many it got.
int settle_team(int threads);

/// During its lifetime omp_get_max_threads() is `threads` on the calling thread: the number that a library plans for.
class PlannedTeam {
 public:
  explicit PlannedTeam(int threads);
  ~PlannedTeam();
  PlannedTeam(const PlannedTeam&) = delete;
  PlannedTeam& operator=(const PlannedTeam&) = delete;

  /// Throws std::runtime_error if a region opened now can get fewer threads. Call it before running, not for planning.
  void check() const;

 private:
  int threads_, before_;
};

}  // namespace choir::kernels::cpu
