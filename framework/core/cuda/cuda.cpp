#include "framework/core/cuda.h"

#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "framework/core/pinned_memory.h"
#include "kernels/cuda/failure.h"
#include "kernels/matmul.h"

namespace choir::cuda {
namespace {

using kernels::cuda::check;

cudaStream_t make_stream(bool high_priority) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, high_priority ? greatest : least),
        "cudaStreamCreateWithPriority");
  return stream;
}

/// Device memory for the caching allocator, allocated and freed in the order of the compute stream.
class StreamOrderedMemory : public MemorySource {
 public:
  explicit StreamOrderedMemory(cudaStream_t stream) : stream_(stream) {}

  void* map(std::int64_t bytes) override {
    void* address = nullptr;
    const cudaError_t status = cudaMallocAsync(&address, static_cast<std::size_t>(bytes), stream_);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // the allocator handles it; the next launch must not report it
      return nullptr;
    }
    check(status, "cudaMallocAsync of " + std::to_string(bytes) + " bytes");
    return address;
  }
  void unmap(void* address, std::int64_t) noexcept override { cudaFreeAsync(address, stream_); }

 private:
  cudaStream_t stream_;
};

}  // namespace

int visible_gpus(std::string& reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    int driver = 0;  // without a driver cudaGetDeviceCount reports that the driver is too old
    cudaDriverGetVersion(&driver);
    reason = driver == 0 ? "there is no CUDA driver" : std::string("CUDA reports: ") + cudaGetErrorString(status);
    return 0;
  }
  if (count == 0) reason = "CUDA sees no GPU";
  return count;
}

static double attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
  return value;
}

GpuFacts gpu_facts(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  char bus[32] = {};
  check(cudaDeviceGetPCIBusId(bus, sizeof(bus), index), "cudaDeviceGetPCIBusId");
  // Operations of one multiprocessor per clock: NVIDIA's architecture white papers of A100, H100 and Blackwell.
  const int generation = 10 * properties.major + properties.minor;
  const double f32 = generation == 80 ? 2 * 64 : 2 * 128;
  const double bf16 = generation == 80 ? 2048 : generation < 90 ? 1024 : generation < 100 ? 4096 : 8192;
  const double clocks = 1e3 * attribute(cudaDevAttrClockRate, index) * properties.multiProcessorCount;  // kHz
  return {.name = properties.name,
          .bus = bus,
          .memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem),
          .compute_capability = generation,
          .multiprocessors = properties.multiProcessorCount,
          .f32_flops_per_second = clocks * f32,
          .bf16_flops_per_second = clocks * bf16,
          .bytes_per_second = 2 * 1e3 * attribute(cudaDevAttrMemoryClockRate, index) *  // twice a clock, kHz
                              attribute(cudaDevAttrGlobalMemoryBusWidth, index) / 8};
}

struct Gpu::State {
  /// A buffer is free again when the work before its upload is done. There are enough of them that the uploads of a
  /// step (its scalars, and the ids and targets of a few micro-batches) do not wait for the step before it.
  static constexpr std::size_t staging_buffers = 16;
  static constexpr std::int64_t staging_bytes = 512 << 10;

  explicit State(const GpuOptions& options)
      : facts(gpu_facts(options.index)),
        compute(add_stream(false)),
        copy(add_stream(false)),
        staging(staging_buffers * staging_bytes),
        attention(options.attention, options.deterministic_attention, options.say) {}
  ~State() {
    for (const cudaStream_t stream : streams) {
      cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
    }
  }

  GpuFacts facts;
  cudaStream_t add_stream(bool high_priority) { return streams.emplace_back(make_stream(high_priority)); }

  std::vector<cudaStream_t> streams;  // all of them
  cudaStream_t compute, copy;
  PinnedMemory staging;
  std::array<std::shared_ptr<CUevent_st>, staging_buffers> copied;  // the last copy out of each buffer
  std::size_t next = 0;
  kernels::cuda::MatmulPlans matmul;
  kernels::cuda::AttentionPlans attention;
};

Gpu::Gpu(const GpuOptions& options) {
  check(cudaSetDevice(options.index), "cudaSetDevice(" + std::to_string(options.index) + ")");
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, options.index), "cudaDeviceGetDefaultMemPool");
  std::uint64_t keep_everything = UINT64_MAX;  // the allocator above caches: returning memory would only cost time
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_everything), "cudaMemPoolSetAttribute");
  state_ = std::make_unique<State>(options);
}

Gpu::~Gpu() = default;

kernels::Cuda Gpu::kernels() const {
  return {.stream = state_->compute,
          .matmul_plans = &state_->matmul,
          .attention_plans = &state_->attention,
          .multiprocessors = state_->facts.multiprocessors};
}

const GpuFacts& Gpu::facts() const { return state_->facts; }
CUstream_st* Gpu::compute() const { return state_->compute; }
CUstream_st* Gpu::add_communication_stream() { return state_->add_stream(true); }
std::unique_ptr<MemorySource> Gpu::memory() const { return std::make_unique<StreamOrderedMemory>(state_->compute); }

// compute:  ... before | record                        wait | after ...
//                             \                       /
// copy:                        wait | copy in pieces | record
void Gpu::upload(const void* host, void* device, std::int64_t bytes) {
  State& s = *state_;
  wait(s.copy, record(s.compute).get());
  for (std::int64_t begin = 0; begin < bytes; begin += State::staging_bytes) {
    const auto count = static_cast<std::size_t>(std::min(State::staging_bytes, bytes - begin));
    const std::size_t buffer = std::exchange(s.next, (s.next + 1) % State::staging_buffers);
    if (s.copied[buffer]) synchronize(s.copied[buffer].get());
    void* const staged = static_cast<char*>(s.staging.data()) + buffer * State::staging_bytes;
    std::memcpy(staged, static_cast<const char*>(host) + begin, count);
    // By default the direction is that of the addresses: memory of the device may be pinned memory (pinned_memory.h).
    check(cudaMemcpyAsync(static_cast<char*>(device) + begin, staged, count, cudaMemcpyDefault, s.copy),
          "cudaMemcpyAsync to the device");
    s.copied[buffer] = record(s.copy);
  }
  wait(s.compute, record(s.copy).get());
}

void Gpu::download(const void* device, void* host, std::int64_t bytes) {
  check(cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDefault, state_->compute),
        "cudaMemcpyAsync to the host");
  synchronize(state_->compute);
}

void synchronize(CUstream_st* stream) { check(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }

std::shared_ptr<CUevent_st> record(CUstream_st* stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  std::shared_ptr<CUevent_st> owner(event, [](cudaEvent_t e) { cudaEventDestroy(e); });
  check(cudaEventRecord(event, stream), "cudaEventRecord");
  return owner;
}

void wait(CUstream_st* stream, CUevent_st* event) {
  check(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
}

bool done(CUevent_st* event) {
  const cudaError_t status = cudaEventQuery(event);
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaEventQuery");
  return true;
}

Range::Range(const char* name) { nvtxRangePushA(name); }
Range::~Range() { nvtxRangePop(); }

}  // namespace choir::cuda
