#include "framework/core/stream.h"

#include <utility>

#include "framework/core/cuda.h"
#include "framework/core/gpu_timer.h"
#include "framework/core/team.h"

namespace choir {

Stream::Stream(StreamMode mode, int threads) : mode_(mode) {
  if (mode_ == StreamMode::threaded) {
    push([threads] { settle_team(threads); });  // the worker's teams are its own
    worker_ = std::thread([this] { run(); });
  }
}

Stream::~Stream() {
  if (mode_ != StreamMode::threaded) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  worker_.join();
}

void Stream::push(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void Stream::run() {
  for (std::uint64_t number = 1;; ++number) {
    std::function<void()> work;
    {
      std::unique_lock lock(mutex_);
      busy_ = false;
      if (queue_.empty()) idle_.notify_all();
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    running_ = number;
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    running_ = 0;
  }
}

void Stream::synchronize() {
  if (mode_ == StreamMode::cuda) cuda::synchronize(cuda_);
  if (mode_ != StreamMode::threaded) return;
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Event::record(Stream& stream) {
  if (stream.mode() == StreamMode::cuda) {
    cuda_ = cuda::record(stream.cuda());
    return;
  }
  auto state = std::make_shared<State>();
  state_ = state;
  stream.enqueue([state] {
    const std::lock_guard lock(state->mutex);
    state->done = true;
    state->done_condition.notify_all();
  });
}

void Event::wait(Stream& stream) const {
  if (cuda_ && stream.timer())
    stream.timer()->wait(cuda_.get());
  else if (cuda_)
    cuda::wait(stream.cuda(), cuda_.get());
  if (!state_) return;
  stream.enqueue([state = state_] {
    std::unique_lock lock(state->mutex);
    state->done_condition.wait(lock, [&] { return state->done; });
  });
}

bool Event::done() const {
  if (cuda_) return cuda::done(cuda_.get());
  if (!state_) return true;
  const std::lock_guard lock(state_->mutex);
  return state_->done;
}

}  // namespace choir
