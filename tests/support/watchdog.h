// Ends a test that hangs, and prints its name.
//
// It uses an alarm, not a thread: tests fork, and in the child of a process with two threads a lock of the allocator
// may stay locked forever (under the address sanitizer in one of sixty).
#pragma once

namespace choir::tests {

/// Ends the process with exit code 124 when one test runs for longer than `seconds`, after printing its name. Call
/// before RUN_ALL_TESTS(). A forked child has no alarm.
void start_watchdog(int seconds, int rank);

}  // namespace choir::tests
