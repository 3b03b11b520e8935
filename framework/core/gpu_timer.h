// Times of a GPU's work, by its own events: the host's clock would count how long it takes to enqueue and to wait.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

struct CUstream_st;
struct CUevent_st;

namespace choir::cuda {

/// A new event, which keeps its time, after everything enqueued on `stream` so far.
std::shared_ptr<CUevent_st> record_time(CUstream_st* stream);
/// Of two of these that have happened.
double seconds_between(CUevent_st* begin, CUevent_st* end);

/// The seconds between the beginning and the end of what `work` enqueues on `stream`. Waits for it.
double seconds_of(CUstream_st* stream, const std::function<void()>& work);

/// How long a stream is busy, idle, or waiting for an event, and how much of that it waits. Stream::count_waits().
class StreamTimer {
 public:
  /// Begins behind what `stream` has got so far.
  explicit StreamTimer(CUstream_st* stream);
  /// cuda::wait(), counted.
  void wait(CUevent_st* event);

  /// Ends behind what the stream has got by now.
  void end();
  struct Seconds {
    double all, waiting;
  };
  /// From the beginning to the end, for which this waits.
  Seconds seconds() const;

 private:
  using Time = std::shared_ptr<CUevent_st>;

  CUstream_st* stream_;
  Time began_, ended_;
  std::vector<std::pair<Time, Time>> waits_;  // from, to
};

}  // namespace choir::cuda
