// Seconds during which this process ran.
//
// A laptop that sleeps and a job that is suspended (SIGSTOP, later SIGCONT) do nothing wrong. A thread that advances
// this clock at short intervals sees little time pass meanwhile, however long it took.
#pragma once

#include <algorithm>
#include <chrono>

namespace choir {

class AwakeClock {
 public:
  /// A longer interval between two calls of advance() counts as `most` seconds.
  explicit AwakeClock(double most) : most_(most) {}

  /// The seconds since the construction. To be called by one thread.
  double advance() {
    const auto time = std::chrono::steady_clock::now();
    seconds_ += std::min(most_, std::chrono::duration<double>(time - last_).count());
    last_ = time;
    return seconds_;
  }

 private:
  double most_, seconds_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace choir
