// What every operation does: enqueue a kernel with its cost, turn an element type into a template argument, check
// operands. The device itself is chosen by Device::with_kernels().
#pragma once

#include <bit>
#include <chrono>
#include <cstdint>
#include <utility>

#include "framework/core/error.h"
#include "framework/core/gpu_timer.h"
#include "framework/core/runtime.h"

namespace choir::ops {

/// Enqueues kernel(tag of the device) on the compute stream; T is the type of its elements. On device `count` only
/// writes `cost` to the ledger. `name` is the line of the profile table and of a profiler: "attention forward".
///
/// With the ledger enabled each is timed: on a GPU by events before and behind it, for which nothing waits.
template <class T, class Kernel>
void launch(Runtime& runtime, const char* name, Cost cost, Kernel kernel) {
  Device& device = runtime.device;
  if (device.counts_only()) {
    device.ledger().add(name, cost, 0);
    return;
  }
  device.compute().enqueue([name, cost, kernel = std::move(kernel), &device] {
    const cuda::Range range(name);
    Ledger& ledger = device.ledger();
    if (!ledger.enabled) return device.with_kernels<T>(kernel);
    if (device.compute().mode() == StreamMode::cuda) {
      const auto begin = cuda::record_time(device.compute().cuda());
      device.with_kernels<T>(kernel);
      const auto end = cuda::record_time(device.compute().cuda());
      ledger.add_later(name, cost, [begin, end] { return cuda::seconds_between(begin.get(), end.get()); });
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    device.with_kernels<T>(kernel);
    ledger.add(name, cost, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  });
}

/// Workspace of `bytes` bytes, or an empty handle for none. Small ones are powers of two, so that operations of many
/// shapes, one after another, share a few blocks.
inline Tensor workspace(Runtime& runtime, std::int64_t bytes) {
  if (bytes <= 0) return {};
  constexpr std::uint64_t small = 2 << 20;
  const auto wanted = static_cast<std::uint64_t>(bytes);
  const std::uint64_t size = wanted < small ? std::bit_ceil(wanted) : wanted;
  return runtime.empty({static_cast<std::int64_t>(size)}, DType::u8, MemoryKind::workspace);
}

/// Calls body.operator()<T>() with the C++ type of activations of `type`.
template <class Body>
decltype(auto) with_type(DType type, Body&& body) {
  switch (type) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::f64:
      return body.template operator()<double>();
    case DType::i32:
    case DType::u8:
      break;
  }
  throw Error({.what = std::string("no kernels for elements of type ") + name_of(type)});
}

/// Throws Error if `holds` is false: the operands do not fit together, which is a mistake in Choir or in its caller.
inline void check(bool holds, const char* rule, std::source_location at = std::source_location::current()) {
  if (!holds) throw Error({.what = std::string("operands do not fit together: ") + rule}, at);
}

/// The data pointer, or null for an empty handle.
template <class T>
T* data_or_null(const Tensor& tensor) {
  return tensor ? tensor.data<T>() : nullptr;
}

inline double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors)
    if (tensor) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

}  // namespace choir::ops
