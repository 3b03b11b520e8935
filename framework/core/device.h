// The owner of what one device needs: memory, streams, the ledger. Made in main(), destroyed last.
#pragma once

#include <cstdint>

#include "framework/core/allocator.h"
#include "framework/core/ledger.h"
#include "framework/core/stream.h"
#include "framework/core/tensor.h"
#include "kernels/matmul.h"
#include "kernels/types.h"

namespace choir {

/// `count` allocates nothing and computes nothing, but counts: the device of a dry run.
enum class DeviceKind : std::uint8_t { cpu, count };

class Device {
 public:
  Device(DeviceKind kind, int threads, StreamMode streams = StreamMode::immediate);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceKind kind() const { return kind_; }
  bool counts_only() const { return kind_ == DeviceKind::count; }
  kernels::Cpu cpu() { return {.threads = threads_, .plans = &plans_}; }
  int threads() const { return threads_; }

  Allocator& allocator() { return allocator_; }
  Stream& compute() { return compute_; }          ///< all arithmetic
  Stream& communicate() { return communicate_; }  ///< all collectives; the only stream that calls MPI
  Ledger& ledger() { return ledger_; }

  /// Returns when both streams are idle.
  void synchronize();

 private:
  DeviceKind kind_;
  int threads_;
  kernels::cpu::MatmulPlans plans_;
  Allocator allocator_;
  Ledger ledger_;
  Stream compute_, communicate_;
};

}  // namespace choir
