#include "launch/signals.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

namespace choir {
namespace {

volatile std::sig_atomic_t received = 0;

void remember(int signal) {
  if (received != 0) _exit(128 + signal);
  received = signal;
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = remember;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
}

RunEnd requested_end() {
  if (received == 0) return RunEnd::done;
  return received == SIGINT ? RunEnd::interrupted : RunEnd::requeue;
}

}  // namespace choir
