#include "framework/core/device.h"

#include <cstring>

#include "framework/core/team.h"

namespace choir {

Device::Device(int threads, StreamMode streams, kernels::CpuUnit unit)
    : kind_(DeviceKind::cpu), threads_(threads), unit_(unit), allocator_(host_memory()), compute_(streams, threads) {
  communicate_.emplace_back(streams);
  settle_team(threads);
}

Device::Device(const GpuOptions& gpu, int threads)
    : kind_(DeviceKind::cuda),
      threads_(threads),
      gpu_(std::make_unique<cuda::Gpu>(gpu)),
      allocator_(gpu_->memory()),
      compute_(gpu_->compute()) {
  add_communication_stream();
  settle_team(threads);
}

Device::Device(CountOnly what, int threads)
    : kind_(what.kind),
      counts_only_(true),
      threads_(threads),
      unit_(what.unit),
      planned_for_(what.gpu),
      allocator_(counted_memory()),
      compute_(StreamMode::immediate) {
  communicate_.emplace_back(StreamMode::immediate);
}

Device::~Device() = default;

Stream& Device::add_communication_stream() {
  return gpu_ ? communicate_.emplace_back(gpu_->add_communication_stream()) : communicate();
}

// On device `count` the tag only answers questions about workspaces.
kernels::Cuda Device::cuda() const {
  constexpr int multiprocessors_of_h100 = 132;
  if (planned_for_) return planned_for_->cuda();
  return gpu_ ? gpu_->kernels() : kernels::Cuda{.multiprocessors = multiprocessors_of_h100};
}

void Device::upload(const void* host, void* address, std::int64_t bytes) {
  if (counts_only_) return;
  if (gpu_) return gpu_->upload(host, address, bytes);
  compute_.synchronize();
  std::memcpy(address, host, static_cast<std::size_t>(bytes));
}

void Device::download(const void* address, void* host, std::int64_t bytes) {
  if (counts_only_) {
    std::memset(host, 0, static_cast<std::size_t>(bytes));
    return;
  }
  if (gpu_) return gpu_->download(address, host, bytes);
  compute_.synchronize();
  std::memcpy(host, address, static_cast<std::size_t>(bytes));
}

void Device::synchronize() {
  compute_.synchronize();
  for (Stream& stream : communicate_) stream.synchronize();
  ledger_.settle();
}

}  // namespace choir
