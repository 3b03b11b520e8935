// A test that does not end is ended, and says which one it was.
//
// By an alarm, not by a thread: tests fork, and a child of two threads may find a lock of the allocator taken for ever
// (under the address sanitizer one in sixty did).
#pragma once

namespace choir::tests {

/// Ends the process with exit code 124 when one test runs for longer than `seconds`, after printing its name. Call
/// before RUN_ALL_TESTS(). A forked child has no alarm.
void start_watchdog(int seconds, int rank);

}  // namespace choir::tests
