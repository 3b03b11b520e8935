// A test that does not end is ended, and says which one it was.
#pragma once

namespace choir::tests {

/// Starts a thread that ends the process with exit code 124 when one test runs for longer than `seconds`,
/// after printing its name. Call before RUN_ALL_TESTS().
void start_watchdog(int seconds, int rank);

}  // namespace choir::tests
