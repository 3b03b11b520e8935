// CUDA's run-time functions on the Simulator, declared by the real headers: another signature does not compile.
#include "tests/simgpu/runtime.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "tests/simgpu/nvtx.h"
#include "tests/simgpu/simulator.h"

namespace choir::simgpu {

Simulator& simulator() {
  static Simulator* the_simulator = [] {  // never destroyed, since kernels are unregistered after everything else
    auto* made = new Simulator;
    // A process that succeeds must have freed everything. After a failure leaks are not reported.
    on_exit(
        [](int status, void* simulator) {
          const std::string rest = static_cast<Simulator*>(simulator)->rest();
          if (status != 0 || rest.empty()) return;
          std::fprintf(stderr, "[simulated GPU] at the end of the process:\n%s", rest.c_str());
          std::fflush(nullptr);
          _exit(86);
        },
        made);
    return made;
  }();
  return *the_simulator;
}

Options options_from_environment() {
  Options options;
  const auto text = [](const char* name) -> const char* {
    return std::getenv((std::string("CHOIR_SIMGPU_") + name).c_str());
  };
  const auto integer = [&](const char* name, auto& value) {
    if (const char* given = text(name))
      value = static_cast<std::remove_reference_t<decltype(value)>>(std::stoll(given));
  };
  integer("DEVICES", options.devices);
  integer("CAPABILITY", options.compute_capability);
  integer("MEMORY", options.memory_bytes);
  integer("SEED", options.seed);
  integer("CHECK", options.check);
  integer("SHARED", options.shared);
  const auto fault = [&](const char* name, int& number) {
    const char *given = text(name), *rank = std::getenv("OMPI_COMM_WORLD_RANK");
    if (given == nullptr || std::atoi(given) != (rank == nullptr ? 0 : std::atoi(rank))) return;
    number = std::atoi(std::strchr(given, ':') + 1);
  };
  fault("FAIL_OPERATION", options.failing_operation);
  fault("FAIL_COLLECTIVE", options.failing_collective);
  if (const char* given = text("HANG")) options.hang_seconds = std::stod(given);
  if (const char* given = text("ORDER")) {
    const std::string order = given;
    options.order = order == "program" ? Order::program : order == "late" ? Order::late : Order::random;
  }
  return options;
}

bool host_waits() { return simulator().host_waits(); }
const Options& options() { return simulator().options(); }
std::vector<Finding> take_findings() { return simulator().take_findings(); }
void add_finding(Finding finding) { simulator().add_finding(std::move(finding)); }
std::vector<KernelTraffic> traffic() { return simulator().traffic(); }
void fail_allocation(int after) { simulator().fail_allocation(after); }
void fail_device(cudaError_t error, int after) { simulator().fail_device(error, after); }
std::vector<std::string> open_ranges() { return nvtx_ranges(); }
const std::vector<std::vector<EmbeddedPtx>>& registered_ptx() { return simulator().fat_binaries(); }

cudaError_t enqueue(cudaStream_t stream, Operation operation) { return simulator().add(stream, std::move(operation)); }

namespace {

/// The state that the run-time keeps for each host thread.
struct HostThread {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  struct Configuration {
    dim3 grid, block;
    std::size_t shared_bytes;
    cudaStream_t stream;
  } configuration;
};

HostThread& host_thread() {
  thread_local HostThread thread;
  return thread;
}

/// cudaErrorNotReady is not an error: the CUDA programming guide says that cudaGetLastError does not report it.
cudaError_t noted(cudaError_t result) {
  if (result != cudaSuccess && result != cudaErrorNotReady) host_thread().last_error = result;
  return result;
}

std::int64_t signed_size(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }

}  // namespace

void configure(const Options& options) {
  simulator().configure(options);
  host_thread() = {};
}

}  // namespace choir::simgpu

using choir::simgpu::host_thread;
using choir::simgpu::noted;
using choir::simgpu::RegisteredKernel;
using choir::simgpu::signed_size;
using choir::simgpu::simulator;

extern "C" {

// --- devices

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  *count = simulator().options().devices;
  return *count > 0 ? cudaSuccess : noted(cudaErrorNoDevice);
}
cudaError_t CUDARTAPI cudaSetDevice(int device) {
  if (device < 0 || device >= simulator().options().devices) return noted(cudaErrorInvalidDevice);
  host_thread().device = device;
  return noted(simulator().device_state());
}
cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = host_thread().device;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const auto& options = simulator().options();
  if (device < 0 || device >= options.devices) return noted(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "simulated GPU (sm_%d)", options.compute_capability);
  properties->major = options.compute_capability / 10;
  properties->minor = options.compute_capability % 10;
  properties->multiProcessorCount = 4;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->totalGlobalMem = static_cast<std::size_t>(options.memory_bytes);
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin =
      static_cast<std::size_t>(choir::simgpu::most_shared_bytes(options.compute_capability));
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const auto& options = simulator().options();
  if (device < 0 || device >= options.devices) return noted(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = options.compute_capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = options.compute_capability % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(choir::simgpu::most_shared_bytes(options.compute_capability));
      break;
    case cudaDevAttrClockRate:  // the simulated GPU has no clock
    case cudaDevAttrMemoryClockRate:
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 0;
      break;
    default:
      return noted(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char* bus, int length, int device) {
  constexpr int shortest = 13;
  const auto& options = simulator().options();
  if (device < 0 || device >= options.devices) return noted(cudaErrorInvalidDevice);
  if (bus == nullptr || length < shortest) return noted(cudaErrorInvalidValue);
  const unsigned domain = options.shared ? 0 : static_cast<unsigned>(getpid()) & 0xffff;
  std::snprintf(bus, static_cast<std::size_t>(length), "%04x:%02x:00.0", domain, static_cast<unsigned>(device));
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  const int devices = simulator().options().devices;
  if (device < 0 || device >= devices || peer < 0 || peer >= devices) return noted(cudaErrorInvalidDevice);
  *can = device != peer ? 1 : 0;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceSynchronize() { return noted(simulator().synchronize_device()); }

// --- memory

cudaError_t CUDARTAPI cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return noted(simulator().memory_info(free, total));
}
cudaError_t CUDARTAPI cudaMalloc(void** address, std::size_t bytes) {
  return noted(simulator().allocate(address, signed_size(bytes), false, nullptr));
}
cudaError_t CUDARTAPI cudaMallocHost(void** address, std::size_t bytes) {
  return noted(simulator().allocate(address, signed_size(bytes), true, nullptr));
}
cudaError_t CUDARTAPI cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  return noted(simulator().allocate(address, signed_size(bytes), true, nullptr));
}
cudaError_t CUDARTAPI cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t stream) {
  return noted(simulator().allocate(address, signed_size(bytes), false, &stream));
}
cudaError_t CUDARTAPI cudaFree(void* address) { return noted(simulator().free_now(address, false)); }
cudaError_t CUDARTAPI cudaFreeHost(void* address) { return noted(simulator().free_now(address, true)); }
cudaError_t CUDARTAPI cudaFreeAsync(void* address, cudaStream_t stream) {
  return noted(simulator().free_in_stream(address, stream));
}
// A pool is the number of its device, plus one.
cudaError_t CUDARTAPI cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  if (device < 0 || device >= simulator().options().devices) return noted(cudaErrorInvalidDevice);
  *pool = reinterpret_cast<cudaMemPool_t>(static_cast<std::uintptr_t>(device) + 1);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const auto number = reinterpret_cast<std::uintptr_t>(pool);
  const bool known = number > 0 && number <= static_cast<std::uintptr_t>(simulator().options().devices);
  if (!known || attribute != cudaMemPoolAttrReleaseThreshold || value == nullptr) return noted(cudaErrorInvalidValue);
  return cudaSuccess;  // how long a pool keeps memory has no effect here
}
cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return noted(simulator().copy(to, from, signed_size(bytes), kind, nullptr, false));
}
cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream) {
  return noted(simulator().copy(to, from, signed_size(bytes), kind, stream, true));
}
cudaError_t CUDARTAPI cudaMemset(void* to, int value, std::size_t bytes) {
  return noted(simulator().set(to, value, signed_size(bytes), nullptr, false));
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return noted(simulator().set(to, value, signed_size(bytes), stream, true));
}

// --- streams and events

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  if (flags > cudaStreamNonBlocking) return noted(cudaErrorInvalidValue);
  return noted(simulator().create_stream(stream, host_thread().device));
}
cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) { return noted(simulator().destroy_stream(stream)); }
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream) {
  return noted(simulator().synchronize_stream(stream));
}
cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream) { return noted(simulator().query_stream(stream)); }
cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  if (flags != cudaEventWaitDefault) return noted(cudaErrorInvalidValue);
  return noted(simulator().wait_for_event(stream, event));
}
cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (flags != cudaEventDisableTiming && flags != cudaEventDefault) return noted(cudaErrorInvalidValue);
  return noted(simulator().create_event(event, host_thread().device, flags == cudaEventDefault));
}
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event) { return noted(simulator().destroy_event(event)); }
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return noted(simulator().record_event(event, stream));
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) { return noted(simulator().synchronize_event(event)); }
cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event) { return noted(simulator().query_event(event)); }

cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return noted(simulator().elapsed_time(milliseconds, begin, end));
}

// The headers of cudnn-frontend refer to it; it is never called.
cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t*) { return noted(cudaErrorNotSupported); }

// --- errors

cudaError_t CUDARTAPI cudaGetLastError() { return std::exchange(host_thread().last_error, cudaSuccess); }
cudaError_t CUDARTAPI cudaPeekAtLastError() { return host_thread().last_error; }
const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchTimeout:
      return "cudaErrorLaunchTimeout";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorInvalidPtx:
      return "cudaErrorInvalidPtx";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "another cudaError";
  }
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return "the simulated GPU reports an error";
  }
}

// --- kernels

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  RegisteredKernel* kernel = simulator().kernel(function);
  if (kernel == nullptr) return noted(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return noted(cudaErrorInvalidValue);
  return noted(simulator().allow_dynamic_shared(*kernel, value));
}
cudaError_t CUDARTAPI cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                       std::size_t shared_bytes, cudaStream_t stream) {
  RegisteredKernel* kernel = simulator().kernel(function);
  if (kernel == nullptr) return noted(cudaErrorInvalidDeviceFunction);
  return noted(simulator().launch(*kernel, grid, block, arguments, shared_bytes, stream, host_thread().device));
}
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t* handle, const void* function) {
  *handle = reinterpret_cast<cudaKernel_t>(simulator().kernel(function));
  return *handle != nullptr ? cudaSuccess : noted(cudaErrorInvalidDeviceFunction);
}
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 block, void** arguments,
                                         std::size_t shared_bytes, cudaStream_t stream) {
  if (handle == nullptr) return noted(cudaErrorInvalidDeviceFunction);
  return noted(simulator().launch(*reinterpret_cast<RegisteredKernel*>(handle), grid, block, arguments, shared_bytes,
                                  stream, host_thread().device));
}
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared_bytes, CUstream_st* stream) {
  host_thread().configuration = {.grid = grid, .block = block, .shared_bytes = shared_bytes, .stream = stream};
  return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared_bytes, void* stream) {
  const auto& configuration = host_thread().configuration;
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  std::memcpy(stream, &configuration.stream, sizeof configuration.stream);
  return cudaSuccess;
}

// What nvcc's code calls before main(). The handle is the number of the fat binary, plus one.
void** CUDARTAPI __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(simulator().add_fat_binary(wrapper) + 1);
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void**) {}
void CUDARTAPI __cudaUnregisterFatBinary(void**) {}
char CUDARTAPI __cudaInitModule(void**) { return 1; }
void CUDARTAPI __cudaRegisterFunction(void** fat_binary, const char* host_function, char*, const char* name, int,
                                      uint3*, uint3*, dim3*, dim3*, int*) {
  simulator().add_kernel(reinterpret_cast<std::size_t>(fat_binary) - 1, host_function, name);
}
void CUDARTAPI __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
}
