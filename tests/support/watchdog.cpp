#include "tests/support/watchdog.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <string>

namespace choir::tests {
namespace {

// Written while no alarm is set, read by the handler; lives until the process ends.
char last_words[400];
std::size_t num_last_words = 0;

void say_and_exit(int) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, last_words, num_last_words);
  _exit(124);
}

class Listener : public ::testing::EmptyTestEventListener {
 public:
  Listener(unsigned seconds, int rank) : seconds_(seconds), rank_(rank) { expect_the_end_of("start-up"); }
  void OnTestStart(const ::testing::TestInfo& info) override {
    expect_the_end_of(fmt::format("{}.{}", info.test_suite_name(), info.name()));
  }
  void OnTestEnd(const ::testing::TestInfo& info) override {
    expect_the_end_of(fmt::format("what follows {}.{}", info.test_suite_name(), info.name()));
  }
  void OnTestProgramEnd(const ::testing::UnitTest&) override { expect_the_end_of("the clean-up of the program"); }

 private:
  void expect_the_end_of(const std::string& what) {
    alarm(0);
    num_last_words = static_cast<std::size_t>(
        fmt::format_to_n(last_words, sizeof last_words,
                         "[watchdog] rank {}: {} has not ended after {} s; ending the process\n", rank_, what, seconds_)
            .out -
        last_words);
    alarm(seconds_);
  }

  const unsigned seconds_;
  const int rank_;
};

}  // namespace

void start_watchdog(int seconds, int rank) {
  std::signal(SIGALRM, say_and_exit);
  ::testing::UnitTest::GetInstance()->listeners().Append(new Listener(static_cast<unsigned>(seconds), rank));
}

}  // namespace choir::tests
