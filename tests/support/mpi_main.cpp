// main() of the multi-process tests: passes only if every rank passed. Without their device it says so and ends with
// exit code 77.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>

#include "tests/support/device.h"
#include "tests/support/watchdog.h"

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  ::testing::InitGoogleTest(&argc, argv);
  if (const std::string reason = choir::tests::reason_to_skip(); !reason.empty()) {
    if (rank == 0) std::printf("%s: skipped: %s\n", argv[0], reason.c_str());
    MPI_Finalize();
    return 77;
  }
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) delete listeners.Release(listeners.default_result_printer());
#ifdef CHOIR_TEST_SECONDS
  constexpr int seconds = CHOIR_TEST_SECONDS;  // for programs with slow tests
#else
  constexpr int seconds = 180;
#endif
  choir::tests::start_watchdog(seconds, rank);
  struct FailurePrinter : ::testing::EmptyTestEventListener {  // ranks other than 0 print their failures only
    explicit FailurePrinter(int r) : rank(r) {}
    void OnTestPartResult(const ::testing::TestPartResult& result) override {
      if (rank != 0 && result.failed())
        std::fprintf(stderr, "[rank %d] %s:%d: %s\n", rank, result.file_name() ? result.file_name() : "?",
                     result.line_number(), result.message());
    }
    int rank;
  };
  listeners.Append(new FailurePrinter(rank));
  int failed = RUN_ALL_TESTS();
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed;
}
