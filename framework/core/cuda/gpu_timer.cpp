#include "framework/core/gpu_timer.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/failure.h"

namespace choir::cuda {

using kernels::cuda::check;

static std::shared_ptr<CUevent_st> record_time(CUstream_st* stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "cudaEventCreateWithFlags");
  std::shared_ptr<CUevent_st> owner(event, [](cudaEvent_t e) { cudaEventDestroy(e); });
  check(cudaEventRecord(event, stream), "cudaEventRecord");
  return owner;
}

double seconds_of(CUstream_st* stream, const std::function<void()>& work) {
  const auto begin = record_time(stream);
  work();
  const auto end = record_time(stream);
  check(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace choir::cuda
