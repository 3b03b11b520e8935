// Streams and events, immediate and threaded: order within a stream, order across streams by events, exceptions.
#include "framework/core/stream.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <vector>

namespace choir::tests {
namespace {

using namespace std::chrono_literals;

class Streams : public ::testing::TestWithParam<StreamMode> {};

TEST_P(Streams, RunInOrder) {
  Stream stream(GetParam());
  std::vector<int> order;  // touched by one thread until synchronize()
  for (int i = 0; i < 1000; ++i) stream.enqueue([&order, i] { order.push_back(i); });
  stream.synchronize();
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_P(Streams, AnEventOrdersTwoStreamsBothWays) {
  Stream left(GetParam()), right(GetParam());
  std::vector<int> order;
  for (int round = 0; round < 100; ++round) {
    left.enqueue([&order, round] {
      if (round % 20 == 0) std::this_thread::sleep_for(1ms);
      order.push_back(2 * round);
    });
    Event there;
    there.record(left);
    there.wait(right);
    right.enqueue([&order, round] {
      if (round % 20 == 10) std::this_thread::sleep_for(1ms);
      order.push_back(2 * round + 1);
    });
    Event back;
    back.record(right);
    back.wait(left);
  }
  left.synchronize();
  right.synchronize();
  ASSERT_EQ(order.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_P(Streams, AnEventNeverRecordedBlocksNothingAndALaterRecordCounts) {
  Stream left(GetParam()), right(GetParam());
  Event event;
  event.wait(right);
  right.synchronize();
  std::atomic<int> done = 0;
  event.record(left);
  left.enqueue([&] {
    std::this_thread::sleep_for(2ms);
    done = 1;
  });
  event.record(left);
  event.wait(right);
  int seen = -1;
  right.enqueue([&] { seen = done; });
  right.synchronize();
  EXPECT_EQ(seen, 1);
}

TEST_P(Streams, TheStreamContinuesAfterAnException) {
  Stream stream(GetParam());
  int ran = 0;
  const auto enqueue_and_wait = [&] {
    stream.enqueue([] { throw std::runtime_error("first"); });
    stream.enqueue([] { throw std::runtime_error("second"); });
    stream.synchronize();
  };
  try {
    enqueue_and_wait();
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "first");
  }
  stream.enqueue([&] { ++ran; });
  stream.synchronize();  // the first exception is thrown once
  EXPECT_EQ(ran, 1);
}

TEST_P(Streams, TheDestructorRunsWhatIsEnqueued) {
  std::atomic<int> ran = 0;
  {
    Stream stream(GetParam());
    for (int i = 0; i < 50; ++i) stream.enqueue([&] { ++ran; });
  }
  EXPECT_EQ(ran, 50);
}

INSTANTIATE_TEST_SUITE_P(Modes, Streams, ::testing::Values(StreamMode::immediate, StreamMode::threaded),
                         [](const auto& instance) {
                           return instance.param == StreamMode::immediate ? "immediate" : "threaded";
                         });

TEST(ImmediateStream, RunsInTheCallerBeforeEnqueueReturns) {
  Stream stream(StreamMode::immediate);
  std::thread::id where;
  stream.enqueue([&] { where = std::this_thread::get_id(); });
  EXPECT_EQ(where, std::this_thread::get_id());
}

TEST(ThreadedStream, RunsOnAWorkerWithItsOwnTeamsAndDoesNotBlockTheCaller) {
  std::atomic<bool> may_go = false;
  Stream stream(StreamMode::threaded, 3);
  const int of_caller = omp_get_max_threads();
  int planned = 0, came = 0;
  std::thread::id where;
  stream.enqueue([&] {
    while (!may_go) std::this_thread::yield();
    where = std::this_thread::get_id();
    planned = omp_get_max_threads();
#pragma omp parallel reduction(+ : came)
    came += 1;
  });
  may_go = true;  // reached only because enqueue returned
  stream.synchronize();
  EXPECT_NE(where, std::this_thread::get_id());
  EXPECT_EQ(planned, 3);
  EXPECT_EQ(came, 3);
  EXPECT_EQ(omp_get_max_threads(), of_caller);
}

}  // namespace
}  // namespace choir::tests
