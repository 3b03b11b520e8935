// The GPU of one rank as the rest of core sees it: memory, streams, events, copies, ranges for profilers.
//
// core/cuda/cuda.cpp does it with the CUDA run-time; core/cuda_absent.cpp is linked in a build without the toolkit:
// there no GPU is ever visible, and nothing else here is called.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "framework/core/allocator.h"
#include "framework/core/names.h"
#include "kernels/attention.h"
#include "kernels/types.h"

struct CUevent_st;

namespace choir {

using AttentionImplementation = kernels::cuda::AttentionImplementation;
template <>
inline constexpr auto names<AttentionImplementation> = std::array{"auto", "cudnn", "flash"};

/// What one rank wants of its GPU.
struct GpuOptions {
  int index = 0;  ///< among the visible ones
  AttentionImplementation attention = AttentionImplementation::automatic;
  bool deterministic_attention = true;
  std::function<void(const std::string&)> say = [](const std::string&) {};  ///< told once why something is slower
};

struct GpuFacts {
  std::string name;
  std::string bus;  ///< PCI address: the same for two processes that see the same GPU
  std::int64_t memory_bytes = 0;
  int compute_capability = 0;  ///< 90 for sm_90
  int multiprocessors = 0;
  /// Peak rates, computed from clock rates and unit counts: f32 with fused multiply-adds, bf16 on dense tensor cores,
  /// device memory. 0 if the driver does not report a clock.
  double f32_flops_per_second = 0, bf16_flops_per_second = 0, bytes_per_second = 0;
};

namespace cuda {

/// The number of GPUs that this process can use. If it is 0, `reason` says why: no driver, no device, no toolkit.
int visible_gpus(std::string& reason);
GpuFacts gpu_facts(int index);

/// Streams, cuBLASLt, cuDNN and the staging memory of one GPU. The calling thread's current device is set to it.
class Gpu {
 public:
  explicit Gpu(const GpuOptions& options);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const GpuFacts& facts() const;
  kernels::Cuda kernels() const;  ///< of the compute stream
  CUstream_st* compute() const;
  CUstream_st* add_communication_stream();  ///< of high priority; the Gpu owns it

  /// Device memory = host memory, after everything enqueued on the compute stream and before everything enqueued
  /// later. Through two pinned buffers on a stream of its own; the host memory may change when this returns.
  void upload(const void* host, void* device, std::int64_t bytes);
  /// Host memory = device memory, after everything enqueued on the compute stream. Waits.
  void download(const void* device, void* host, std::int64_t bytes);

  /// Stream-ordered memory of the compute stream, for an Allocator.
  std::unique_ptr<MemorySource> memory() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

void synchronize(CUstream_st* stream);
/// A new event after everything enqueued on `stream` so far.
std::shared_ptr<CUevent_st> record(CUstream_st* stream);
/// Everything enqueued on `stream` from now on happens after `event`.
void wait(CUstream_st* stream, CUevent_st* event);
bool done(CUevent_st* event);

/// Names a stretch of host code, and the work enqueued in it, for profilers (NVTX).
class Range {
 public:
  explicit Range(const char* name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace cuda
}  // namespace choir
