#include "framework/core/gpu_timer.h"

#include <cuda_runtime_api.h>

#include "framework/core/cuda.h"
#include "framework/core/pinned_memory.h"
#include "kernels/cuda/failure.h"

namespace choir::cuda {

using kernels::cuda::check;

std::shared_ptr<CUevent_st> record_time(CUstream_st* stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "cudaEventCreateWithFlags");
  std::shared_ptr<CUevent_st> owner(event, [](cudaEvent_t e) { cudaEventDestroy(e); });
  check(cudaEventRecord(event, stream), "cudaEventRecord");
  return owner;
}

double seconds_between(CUevent_st* begin, CUevent_st* end) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  return 1e-3 * static_cast<double>(milliseconds);
}

double seconds_of(CUstream_st* stream, const std::function<void()>& work) {
  StreamTimer timer(stream);
  work();
  timer.end();
  return timer.seconds().all;
}

StreamTimer::StreamTimer(CUstream_st* stream) : stream_(stream), began_(record_time(stream)) {}

void StreamTimer::wait(CUevent_st* event) {
  Time from = record_time(stream_);
  cuda::wait(stream_, event);
  waits_.emplace_back(std::move(from), record_time(stream_));
}

void StreamTimer::end() { ended_ = record_time(stream_); }

StreamTimer::Seconds StreamTimer::seconds() const {
  synchronize(ended_.get());
  Seconds seconds{.all = seconds_between(began_.get(), ended_.get()), .waiting = 0};
  for (const auto& [from, to] : waits_) seconds.waiting += seconds_between(from.get(), to.get());
  return seconds;
}

}  // namespace choir::cuda
