// The owner of what one device needs: memory, streams, the ledger. Made in main(), destroyed last.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <type_traits>

#include "framework/core/allocator.h"
#include "framework/core/cuda.h"
#include "framework/core/error.h"
#include "framework/core/ledger.h"
#include "framework/core/stream.h"
#include "framework/core/tensor.h"
#include "kernels/matmul.h"
#include "kernels/types.h"

namespace choir {

enum class DeviceKind : std::uint8_t { cpu, cuda };

class Device;

/// Selects the constructor that makes a device `count`: it allocates nothing and computes nothing, but counts what a
/// device of the given kind would need: the device of a dry run.
struct CountOnly {
  DeviceKind kind = DeviceKind::cpu;
  /// A GPU of this machine, asked for its libraries' workspaces; it outlives the device. Null: an H100 is assumed,
  /// and Choir's own attention kernels, since cuDNN's answers depend on the GPU.
  const Device* gpu = nullptr;
  kernels::CpuUnit unit = kernels::CpuUnit::library;  ///< as in Device(threads, streams, unit)
};

class Device {
 public:
  /// The CPU, with so many OpenMP threads. Settles the teams of the calling thread and of the streams' workers; throws
  /// ConfigError if OpenMP gives fewer threads (framework/core/team.h). `unit`: kernels/types.h.
  explicit Device(int threads, StreamMode streams = StreamMode::immediate,
                  kernels::CpuUnit unit = kernels::CpuUnit::library);
  /// A GPU. The host's own work (start values, sampling) runs on so many OpenMP threads of the calling thread, whose
  /// teams are settled as for the CPU.
  Device(const GpuOptions& gpu, int threads);
  Device(CountOnly what, int threads);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceKind kind() const { return kind_; }
  bool counts_only() const { return counts_only_; }
  int threads() const { return threads_; }
  kernels::CpuUnit unit() const { return unit_; }

  Allocator& allocator() { return allocator_; }
  Stream& compute() { return compute_; }  ///< all arithmetic
  /// The stream of communicators that have none of their own. On the CPU the only stream that calls MPI.
  Stream& communicate() { return communicate_.front(); }
  /// One more stream, for the calls of a communicator or for copies: on a GPU, where they then do not wait for those of
  /// others. Else communicate().
  Stream& add_communication_stream();
  Ledger& ledger() { return ledger_; }

  /// kernel(tag) with the tag that selects this device's kernels, those for elements of type T.
  template <class T, class Kernel>
  decltype(auto) with_kernels(Kernel&& kernel) {
    if constexpr (kernels::built_with_cuda && !std::is_same_v<T, double>)
      if (kind_ == DeviceKind::cuda) return kernel(cuda());
    if (kind_ == DeviceKind::cuda)
      throw Error(kernels::built_with_cuda
                      ? Problem{.what = "there are no CUDA kernels for elements of 64 bits",
                                .why = "f64 is for tests on the CPU"}
                      : Problem{.what = "what the kernels of a GPU need is not known",
                                .why = "this choir was built without CUDA",
                                .fix = "install the toolkit (nvcc, cuBLASLt, NCCL) and build again"});
    return kernel(cpu());
  }
  /// For work of the host, too.
  kernels::Cpu cpu() { return {.threads = threads_, .plans = &plans_, .unit = unit_}; }
  kernels::Cuda cuda() const;
  const GpuFacts& gpu_facts() const { return gpu_->facts(); }  ///< of a real GPU only

  /// Memory of the device = memory of the host, which may change when this returns; after everything enqueued on
  /// compute() and before everything enqueued later.
  void upload(const void* host, void* address, std::int64_t bytes);
  /// Memory of the host = memory of the device, after everything enqueued on compute(). Waits. Zeros on `count`.
  void download(const void* address, void* host, std::int64_t bytes);

  /// Returns when all streams are idle. The ledger then has the times of what they did.
  void synchronize();

 private:
  DeviceKind kind_;
  bool counts_only_ = false;
  int threads_;
  kernels::CpuUnit unit_ = kernels::CpuUnit::library;
  kernels::cpu::MatmulPlans plans_;
  const Device* planned_for_ = nullptr;  // CountOnly::gpu
  std::unique_ptr<cuda::Gpu> gpu_;       // before the allocator and the streams, which use it to the last
  Allocator allocator_;
  Ledger ledger_;
  Stream compute_;
  std::deque<Stream> communicate_;
};

/// What counts as `device` would allocate.
inline CountOnly count_like(const Device& device) {
  return {.kind = device.kind(), .gpu = device.kind() == DeviceKind::cuda ? &device : nullptr, .unit = device.unit()};
}

}  // namespace choir
