#include "tests/support/watchdog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace choir::tests {
namespace {

struct State {
  std::mutex mutex;
  std::string test = "start-up";
  std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
};

class Listener : public ::testing::EmptyTestEventListener {
 public:
  explicit Listener(std::shared_ptr<State> state) : state_(std::move(state)) {}
  void OnTestStart(const ::testing::TestInfo& info) override {
    set(std::string(info.test_suite_name()) + "." + info.name());
  }
  void OnTestEnd(const ::testing::TestInfo& info) override { set(std::string("after ") + info.name()); }

 private:
  void set(std::string name) {
    const std::lock_guard lock(state_->mutex);
    state_->test = std::move(name);
    state_->since = std::chrono::steady_clock::now();
  }
  std::shared_ptr<State> state_;
};

}  // namespace

void start_watchdog(int seconds, int rank) {
  auto state = std::make_shared<State>();
  ::testing::UnitTest::GetInstance()->listeners().Append(new Listener(state));
  std::thread([state, seconds, rank] {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      const std::lock_guard lock(state->mutex);
      if (std::chrono::steady_clock::now() - state->since < std::chrono::seconds(seconds)) continue;
      std::fprintf(stderr, "[watchdog] rank %d: %s has not ended after %d s; ending the process\n", rank,
                   state->test.c_str(), seconds);
      std::fflush(stderr);
      _exit(124);
    }
  }).detach();
}

}  // namespace choir::tests
