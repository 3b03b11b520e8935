// Streams: first in, first out queues of work; events: points in one stream that another waits for.
//
// A CUDA stream takes what `work` enqueues on it; `work` itself runs at once, in the caller.
// The CPU has two modes. `immediate` runs work at once, in the caller. `threaded` gives each stream a worker thread and
// so the ordering of a GPU: a missing event is a race that the thread sanitizer sees.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "framework/core/names.h"

struct CUstream_st;
struct CUevent_st;

namespace choir {

namespace cuda {
class StreamTimer;
}

enum class StreamMode { immediate, threaded, cuda };
template <>
inline constexpr auto names<StreamMode> = std::array{"immediate", "threaded"};  // `cuda` comes with the device

class Stream {
 public:
  /// Of the CPU. A worker thread's OpenMP teams have `threads` threads; in immediate mode the caller's teams count.
  explicit Stream(StreamMode mode, int threads = 1);
  /// A CUDA stream, which outlives this.
  explicit Stream(CUstream_st* cuda) : mode_(StreamMode::cuda), cuda_(cuda) {}
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  StreamMode mode() const { return mode_; }
  CUstream_st* cuda() const { return cuda_; }  ///< null on the CPU

  /// Of a CUDA stream: `timer` counts its waits for events, until there is another one, or none. It outlives that.
  void count_waits(cuda::StreamTimer* timer) { timer_ = timer; }
  cuda::StreamTimer* timer() const { return timer_; }

  /// Runs `work` after everything enqueued before it. Immediate and CUDA: before this returns, and exceptions come out
  /// here. Threaded: later; the first exception comes out of the next synchronize().
  template <class Work>
  void enqueue(Work&& work) {
    if (mode_ == StreamMode::threaded)
      push(std::forward<Work>(work));
    else
      work();
  }

  /// Returns when everything enqueued so far has run.
  void synchronize();

  /// The number of the piece of work that the worker thread runs now, from 1; 0: none. Safe from any thread.
  std::uint64_t running() const { return running_; }

 private:
  void push(std::function<void()> work);
  void run();

  StreamMode mode_;
  CUstream_st* cuda_ = nullptr;
  cuda::StreamTimer* timer_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<std::function<void()>> queue_;
  bool busy_ = false, stop_ = false;
  std::atomic<std::uint64_t> running_ = 0;
  std::exception_ptr error_;
  std::thread worker_;
};

/// A point in a stream. record() and wait() only enqueue; they never block the caller.
class Event {
 public:
  /// Everything enqueued on `stream` so far happens before this event.
  void record(Stream& stream);
  /// Everything enqueued on `stream` from now on happens after the last record(). Does nothing if nothing was recorded.
  void wait(Stream& stream) const;
  /// True if everything before the last record() has happened, or nothing was recorded.
  bool done() const;

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable done_condition;
    bool done = false;
  };
  std::shared_ptr<State> state_;      // of a CPU stream
  std::shared_ptr<CUevent_st> cuda_;  // of a CUDA stream
};

}  // namespace choir
