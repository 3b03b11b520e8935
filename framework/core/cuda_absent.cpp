// core/cuda.h in a build without the CUDA toolkit.
#ifndef CHOIR_CUDA

#include "framework/core/cuda.h"
#include "framework/core/error.h"
#include "framework/core/gpu_timer.h"
#include "framework/core/pinned_memory.h"

namespace choir::cuda {
namespace {

[[noreturn]] void absent() {
  throw Error({.what = "this choir was built without CUDA",
               .why = "the build found no CUDA toolkit",
               .fix = "install the toolkit (nvcc, cuBLASLt, NCCL) and build again, or set train.device=cpu"});
}

}  // namespace

struct Gpu::State {};

int visible_gpus(std::string& reason) {
  reason = "this choir was built without CUDA";
  return 0;
}
GpuFacts gpu_facts(int) { absent(); }
Gpu::Gpu(const GpuOptions&) { absent(); }
Gpu::~Gpu() = default;
const GpuFacts& Gpu::facts() const { absent(); }
kernels::Cuda Gpu::kernels() const { absent(); }
CUstream_st* Gpu::compute() const { absent(); }
CUstream_st* Gpu::add_communication_stream() { absent(); }
void Gpu::upload(const void*, void*, std::int64_t) { absent(); }
void Gpu::download(const void*, void*, std::int64_t) { absent(); }
std::unique_ptr<MemorySource> Gpu::memory() const { absent(); }
std::unique_ptr<MemorySource> pinned_memory() { absent(); }
void synchronize(CUstream_st*) { absent(); }
std::shared_ptr<CUevent_st> record(CUstream_st*) { absent(); }
void wait(CUstream_st*, CUevent_st*) { absent(); }
bool done(CUevent_st*) { absent(); }
std::shared_ptr<CUevent_st> record_time(CUstream_st*) { absent(); }
double seconds_between(CUevent_st*, CUevent_st*) { absent(); }
double seconds_of(CUstream_st*, const std::function<void()>&) { absent(); }
StreamTimer::StreamTimer(CUstream_st*) : stream_(nullptr) { absent(); }
void StreamTimer::wait(CUevent_st*) { absent(); }
void StreamTimer::end() { absent(); }
StreamTimer::Seconds StreamTimer::seconds() const { absent(); }
PinnedMemory::PinnedMemory(std::int64_t) { absent(); }
PinnedMemory::~PinnedMemory() = default;
void copy(const void*, void*, std::int64_t, CUstream_st*) { absent(); }
void synchronize(CUevent_st*) { absent(); }
Range::Range(const char*) {}
Range::~Range() = default;

}  // namespace choir::cuda

#endif
