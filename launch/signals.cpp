#include "launch/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <initializer_list>

namespace choir {
namespace {

// When the first signal and the first SIGINT came: nanoseconds of the monotonic clock; 0: none yet.
std::atomic<std::int64_t> first_signal = 0, first_interrupt = 0;
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a handler must not wait for a lock");

constexpr std::int64_t second = 1'000'000'000;

std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * second + time.tv_nsec;
}

void remember(int signal) {
  const std::int64_t time = now();
  std::int64_t first = 0;
  first_signal.compare_exchange_strong(first, time);
  if (signal != SIGINT) return;
  first = 0;
  if (!first_interrupt.compare_exchange_strong(first, time) && time - first > second) _exit(128 + signal);
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = remember;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
}

StopRequest stop_request() {
  const std::int64_t first = first_signal;
  if (first == 0) return {};
  return {.end = first_interrupt != 0 ? RunEnd::interrupted : RunEnd::requeue,
          .seconds = static_cast<double>(now() - first) / static_cast<double>(second)};
}

void ignore_file_size_signal() { std::signal(SIGXFSZ, SIG_IGN); }

}  // namespace choir
