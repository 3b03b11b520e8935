// The simulated GPU behind CUDA's own run-time functions: what tests and the doubles of the libraries need as well.
//
// A stream is a queue. A thread of the simulator runs the operations at the heads of the queues in an order that is
// legal but adverse; a happens-before check by byte range finds a missing event in every run, not only when it changes
// a result. Device memory is host memory, filled with NaN when it is allocated and when it is freed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/simgpu/memory_checker.h"

namespace choir::simgpu {

/// The order in which ready operations of different streams run. late: as late as the host allows.
enum class Order : std::uint8_t { program, late, random };

struct Options {
  int devices = 1;
  int compute_capability = 80;                        ///< 80, 90 or 100: which PTX runs
  std::int64_t memory_bytes = std::int64_t{1} << 30;  ///< of each device
  Order order = Order::random;
  unsigned seed = 1;
  bool check = true;         ///< shadow memory of kernels, happens-before of streams
  bool computes = true;      ///< false: kernels and libraries are counted, but do nothing, and memory is not filled
  double hang_seconds = 60;  ///< an operation that waits longer is a finding "hang"
  bool shared = false;       ///< every process of the machine sees the same GPUs; else each has its own
  int failing_operation = -1, failing_collective = -1;  ///< as fail_device() and fail_collective(); -1: none
};

/// From CHOIR_SIMGPU_{DEVICES,CAPABILITY,MEMORY,ORDER,SEED,CHECK,HANG,SHARED}: for whole programs under test.
/// CHOIR_SIMGPU_FAIL_{OPERATION,COLLECTIVE}=RANK:NUMBER: on this rank of mpirun, the operation after NUMBER others ends
/// with an illegal address, or the collective never ends, which NCCL reports while the program waits for the GPU.
Options options_from_environment();
const Options& options();

/// Starts over: frees everything, forgets all findings. Called with options_from_environment() by the first CUDA call
/// of a process that has not called it.
void configure(const Options&);

/// Waits for everything enqueued and returns the findings since the last call. A process that ends with findings that
/// were not taken prints them and exits with code 86; so does one that leaks device memory, streams or events.
std::vector<Finding> take_findings();
void add_finding(Finding);

/// What a kernel, or a function of a library, has done so far under one of Choir's labels. Of a kernel also the global
/// memory that it has read and written, each access counted; traffic_mpi_test.cpp compares it with the least possible.
struct KernelTraffic {
  std::string label, kernel;
  std::int64_t launches = 0, instructions = 0, bytes_read = 0, bytes_written = 0;
};
std::vector<KernelTraffic> traffic();

/// An operation of a library's double: runs in stream order like a kernel.
struct Operation {
  std::string name;              ///< for findings: "cublasLtMatmul", "ncclAllReduce"
  std::vector<Access> accesses;  ///< of device memory; checked for bounds, initialisation and stream order
  std::function<bool()> ready;   ///< null: at once. Polled at the head of the stream; must not block
  std::function<void()> run;     ///< on the simulator's thread
};
/// Returns cudaErrorInvalidResourceHandle for a stream that does not exist, or the sticky error of the GPU.
cudaError_t enqueue(cudaStream_t stream, Operation operation);

/// True if a thread of the program waits for the GPU.
bool host_waits();

/// The NVTX ranges that are open on the calling thread, outermost first: Choir's labels.
std::vector<std::string> open_ranges();

/// Faults on demand.
void fail_allocation(int after);           ///< the allocation after `after` more is out of memory
void fail_device(cudaError_t, int after);  ///< sticky error after that many operations

}  // namespace choir::simgpu
