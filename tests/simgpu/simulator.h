// The simulated GPUs of this process: memory, streams, events, and the thread that runs the operations of the streams.
//
// Every operation has a vector clock: what must have happened before it, by stream order, events, and the host's own
// order (an operation happens after all that its thread of the host has waited for when it is enqueued). Two operations
// that touch the same bytes, one of them writing, and are not ordered by their clocks are a finding "stream race",
// whatever order they ran in this time.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "tests/simgpu/fat_binary.h"
#include "tests/simgpu/memory_checker.h"
#include "tests/simgpu/ptx.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu {

/// [stream] -> how many operations of it have happened before.
using Clock = std::unordered_map<int, std::uint64_t>;
void join(Clock& into, const Clock& other);

struct SimulatedEvent {
  int device = 0;
  bool timed = false;
  std::chrono::steady_clock::time_point at;  ///< of the last record that is done
  std::uint64_t recorded = 0, done = 0;      ///< the number of times
  std::map<std::uint64_t, Clock> clocks;     ///< of each record that is done; the last is kept
};

struct Task {
  Operation operation;
  std::string label;  ///< the NVTX range that was open when it was enqueued
  std::shared_ptr<SimulatedEvent> records, waits_for;
  std::uint64_t version = 0;  ///< of the event
  std::uint64_t number = 0;   ///< in its stream, from 1
  std::uint64_t order = 0;    ///< over all streams
  Clock host;                 ///< the clock of the host thread that enqueued it
};

struct SimulatedStream {
  int id = 0, device = 0;
  std::deque<Task> queue;
  bool busy = false;  ///< the operation at its head runs
  std::uint64_t enqueued = 0, done = 0;
  Clock clock;
};

/// Bytes that an operation has accessed, kept as long as a later operation may be unordered with it.
struct Touch {
  std::uintptr_t begin, end;
  bool write;
  int stream;
  std::uint64_t number;
  std::string name;
};

struct SimulatedMemory {
  std::uintptr_t begin = 0, end = 0;
  bool pinned = false;   ///< on the host
  std::string freed_by;  ///< empty while it is allocated
  std::vector<Touch> touches;
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> copied;  ///< of pinned memory, by copies that are not done
};

/// A kernel that nvcc has compiled into this program.
struct RegisteredKernel {
  std::size_t fat_binary;  ///< index into Simulator::fat_binaries
  std::string name;        ///< mangled
  std::int64_t most_dynamic_shared_bytes = 48 << 10;
};

class Simulator {
 public:
  Simulator();

  // Registration, before main().
  std::size_t add_fat_binary(const void* wrapper);
  void add_kernel(std::size_t fat_binary, const void* host_function, const char* name);
  RegisteredKernel* kernel(const void* host_function);
  const std::vector<std::vector<EmbeddedPtx>>& fat_binaries() const { return fat_binaries_; }

  void configure(const Options&);
  /// The options: those of the environment if configure() has not been called.
  const Options& options();
  /// The error that a failed operation has left on the GPU: most functions return it from then on.
  cudaError_t device_state();

  // Each returns the result of the run-time function.
  cudaError_t allocate(void** address, std::int64_t bytes, bool pinned, cudaStream_t* stream);
  cudaError_t free_now(void* address, bool pinned);
  cudaError_t free_in_stream(void* address, cudaStream_t stream);
  cudaError_t memory_info(std::size_t* free, std::size_t* total);
  cudaError_t create_stream(cudaStream_t* stream, int device);
  cudaError_t destroy_stream(cudaStream_t stream);
  cudaError_t synchronize_stream(cudaStream_t stream);
  cudaError_t query_stream(cudaStream_t stream);
  cudaError_t synchronize_device();
  cudaError_t create_event(cudaEvent_t*, int device, bool timed);
  cudaError_t elapsed_time(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
  cudaError_t destroy_event(cudaEvent_t event);
  cudaError_t record_event(cudaEvent_t event, cudaStream_t stream);
  cudaError_t wait_for_event(cudaStream_t stream, cudaEvent_t event);
  cudaError_t synchronize_event(cudaEvent_t event);
  cudaError_t query_event(cudaEvent_t event);
  cudaError_t copy(void* to, const void* from, std::int64_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                   bool asynchronous);
  cudaError_t set(void* to, int value, std::int64_t bytes, cudaStream_t stream, bool asynchronous);
  cudaError_t allow_dynamic_shared(RegisteredKernel&, std::int64_t bytes);
  cudaError_t launch(RegisteredKernel&, dim3 grid, dim3 block, void** arguments, std::size_t dynamic_shared_bytes,
                     cudaStream_t stream, int device);
  cudaError_t add(cudaStream_t stream, Operation operation);

  void add_finding(Finding finding);
  std::vector<Finding> take_findings();
  std::vector<KernelTraffic> traffic();
  void fail_allocation(int after);
  void fail_device(cudaError_t, int after);
  bool host_waits();
  /// The clock of events goes on by so much, for an operation that takes no time.
  void pass_time(double seconds);
  MemoryChecker& checker() { return *checker_; }
  /// At the end of the process: findings that were not taken and leaks, as lines of text.
  std::string rest();

 private:
  using Lock = std::unique_lock<std::mutex>;

  void start(Lock&);
  void clear(Lock&);
  void set_fault();
  void run();
  bool run_one(Lock&);
  bool is_ready(SimulatedStream&, Lock&);
  SimulatedStream* choose(const std::vector<SimulatedStream*>& ready);
  void execute(SimulatedStream&, Lock&);
  bool wait_until(Lock&, const std::function<bool()>& done);
  cudaError_t finish_wait(Lock&, const std::function<bool()>& done);
  Clock& host();
  SimulatedStream* find(cudaStream_t);
  SimulatedMemory* memory_at(std::uintptr_t address);
  void push(SimulatedStream&, Task);
  void touch(const Access&, const SimulatedStream&, const Task&, const char* kind = "stream race");
  void note(const std::string& kind, const std::string& text);
  void check_operation(const Operation&, const std::string& name);
  void forget(int stream, std::uint64_t operations);
  void free(SimulatedMemory&, const std::string& by);
  void release(std::uintptr_t begin);
  PtxModule& module_of(std::size_t fat_binary);
  KernelTraffic& traffic_of(const Task&, const std::string& kernel);
  std::string pending() const;
  static std::string name_of(const Task&, const SimulatedStream&);

  mutable std::mutex mutex_;
  std::condition_variable work_, progress_;
  std::thread thread_;
  bool started_ = false, configured_ = false;
  bool executing_ = false;                        // an operation runs
  int waiting_ = 0;                               // host threads that wait for the device
  std::chrono::steady_clock::duration passed_{};  // pass_time()
  Options options_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<SimulatedStream>> streams_;
  std::map<cudaEvent_t, std::shared_ptr<SimulatedEvent>> events_;
  std::map<std::uintptr_t, SimulatedMemory> memory_;  // by end
  std::deque<std::uintptr_t> freed_;                  // kept for a while, so that a late use of it is found
  std::int64_t allocated_ = 0, freed_bytes_ = 0;
  int next_stream_ = 1;
  std::uint64_t next_order_ = 1;
  std::map<std::thread::id, Clock> hosts_;  // of each thread of the program
  std::unique_ptr<MemoryChecker> checker_;
  std::vector<Finding> findings_;
  std::map<std::pair<std::string, std::string>, KernelTraffic> traffic_;  // by label and kernel
  int allocations_until_failure_ = -1, operations_until_failure_ = -1;
  cudaError_t failure_ = cudaSuccess, broken_ = cudaSuccess;

  std::vector<std::vector<EmbeddedPtx>> fat_binaries_;
  std::map<std::pair<std::size_t, int>, std::unique_ptr<PtxModule>> modules_;
  std::map<const void*, RegisteredKernel> kernels_;
};

/// The simulator of this process.
Simulator& simulator();

/// Bytes of dynamic and static shared memory that one block may have on sm_80, sm_90 or sm_100.
constexpr std::int64_t most_shared_bytes(int compute_capability) {
  return (compute_capability == 80 ? 163 : 227) << 10;
}

}  // namespace choir::simgpu
